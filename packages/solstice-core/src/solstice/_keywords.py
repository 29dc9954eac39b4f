"""Keywords of other libraries: the error about an unknown keyword has the line to write."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

_F = TypeVar("_F", bound=Callable[..., Any])

_ELSEWHERE = {
    "num_epochs": "epochs max_epochs n_epochs nb_epoch num_train_epochs",
    "max_steps": "steps num_steps n_steps total_steps",
    "train_ds": "train_data train_dataset train_loader train_dataloader train_dataloaders",
    "val_ds": "validation_data val_data valid_ds eval_ds eval_dataset val_dataset val_loader "
    "val_dataloader val_dataloaders",
    "test_ds": "test_data test_dataset test_loader test_dataloader dataloaders",
    "batch_size": "bs batchsize per_device_train_batch_size",
    "resume": "ckpt_path resume_from_checkpoint checkpoint",
    "callbacks": "callback cb",
    "num_classes": "n_classes classes",
    "class_weights": "class_weight",
    "seed": "rng key random_state random_seed",
    "optimizer": "opt optim tx",
    "model": "net network module",
    "val_every_n_steps": "val_check_interval eval_steps validation_freq",
    "sanity_val_batches": "num_sanity_val_steps",
    "directory": "dirpath filepath default_root_dir log_dir save_dir",
    "every": "every_n_train_steps every_n_steps save_steps",
    "every_epochs": "every_n_epochs save_freq",
    "keep_best": "save_top_k save_total_limit save_best_only max_to_keep",
}
"""Keywords of other libraries by their name here."""

_BEST = (
    'With `Checkpoint("runs/a", monitor="val/loss")` as `saver`, the best one is '
    "`solstice.checkpoint.load(saver.best, like=exp)`"
)
_ADVICE = {
    "devices accelerator strategy gpus tpus num_nodes": (
        'Several devices are `solstice.Trainer(mesh="all")`'
    ),
    "gradient_clip_val max_grad_norm clipnorm clip_norm": (
        "The optimiser clips: `optax.chain(optax.clip_by_global_norm(1.0), optimizer)`"
    ),
    "accumulate_grad_batches gradient_accumulation_steps": (
        "The optimiser accumulates: `optax.MultiSteps(optimizer, 4)`"
    ),
    "precision fp16 bf16 amp dtype mixed_precision": (
        "The model has the precision: `solstice.compat.mixed_precision(model, "
        '"params=float32,compute=bfloat16")`'
    ),
    "verbose progress_bar enable_progress_bar show_progress": (
        "`callbacks=[solstice.callbacks.ProgressBar()]` shows progress, and `callbacks=[]` nothing"
    ),
    "logger loggers report_to tensorboard": (
        'Loggers are callbacks: `callbacks=[solstice.loggers.CSV("metrics.csv")]`'
    ),
    "shuffle drop_last drop_remainder": (
        "The data set shuffles: `solstice.data.batches((x, y), 32, shuffle=True, seed=0)`"
    ),
    "restore_best restore_best_weights load_best_model_at_end": _BEST,
    "lr learning_rate": "The optimiser has the learning rate: `optax.adam(1e-3)`",
    "x y": "Features and labels are one data set: `train_ds=(x, y)`",
    "sample_weight": "Weights are a third array of the data set: `train_ds=(x, y, w)`",
    "validation_split": "Cut the arrays: `train_ds=(x[n:], y[n:])`, `val_ds=(x[:n], y[:n])`",
    "loss loss_fn criterion": "The Experiment has the loss, in its `train_step` or its task",
    "metrics": "The Experiment has the metrics, in the results of its steps",
}
"""What to write, by keywords of other libraries that have no name here."""

_OWNERS = {
    "solstice.Trainer.fit": "num_epochs max_steps train_ds val_ds resume batch_size",
    "solstice.Trainer": "callbacks val_every_n_steps sanity_val_batches mesh sharding",
    "the Experiment": "num_classes class_weights seed model optimizer",
    "solstice.callbacks.Checkpoint": "directory keep_best every every_epochs",
}
"""The arguments that are often given to another function, by the one that takes them."""


def _by_word(table: Mapping[str, str]) -> dict[str, str]:
    return {word: value for words, value in table.items() for word in words.split()}


_HERE = _by_word({words: name for name, words in _ELSEWHERE.items()})
_INSTEAD = _by_word(_ADVICE)
_OWNER = _by_word({words: owner for owner, words in _OWNERS.items()})


def keywords_explained(function: _F) -> _F:
    """`@keywords_explained`: an unknown keyword is a TypeError with the line to write."""
    taken = list(_taken(function))
    known = frozenset(taken)

    @functools.wraps(function)
    def keywords_checked(*arguments: Any, **keywords: Any) -> Any:
        if not keywords.keys() <= known:
            name = next(name for name in keywords if name not in known)
            raise TypeError(_message(function.__qualname__, name, taken))
        return function(*arguments, **keywords)

    return cast("_F", keywords_checked)


def _taken(function: Callable[..., Any]) -> Iterator[str]:
    """The names of the parameters, with those of `**options: Unpack[Options]`."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            (options,) = parameter.annotation.__args__
            yield from options.__annotations__
        elif name != "self":
            yield name


def _message(function: str, name: str, taken: list[str]) -> str:
    function = function.removesuffix(".__init__")
    return f"{function} takes no `{name}=`. {_instead(name, taken)}"


def _instead(name: str, taken: list[str]) -> str:
    known = _HERE.get(name, name)
    if known in taken:
        return f"Write `{known}=`"
    if name in _INSTEAD:
        return _INSTEAD[name]
    if known in _OWNER:
        return f"It is an argument of {_OWNER[known]}: `{known}=`"
    close = difflib.get_close_matches(name, taken, 1)
    return f"Write `{close[0]}=`" if close else f"It takes {', '.join(taken)}"
