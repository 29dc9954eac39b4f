"""Mistakes of the first hour: what is typed, and the words that the message must have.

Each is an error or a warning with the line to write. None is silent.
"""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import callbacks, data
from solstice.testing import Sgd

X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)
DS: dict[str, Any] = {"train_ds": (X, Y), "batch_size": 16}


def net(inputs=4, outputs=2):
    return eqx.nn.MLP(inputs, outputs, 8, 1, key=jax.random.key(0))


def exp(model=None, num_classes=2, **options):
    model = net() if model is None else model
    return solstice.ClassificationExperiment(model, Sgd(0.1), num_classes=num_classes, **options)


class Own(solstice.Experiment):
    w: Any

    def train_step(self, batch):
        return self, {"loss": jnp.zeros(())}

    def eval_step(self, batch):
        return self, {"loss": jnp.zeros(())}


def own(**methods):
    """An Experiment with other methods."""
    return type("Mine", (Own,), methods)(jnp.zeros(4))


def fit(experiment=None, given=(), **arguments):
    arguments = {**DS, **arguments}
    return solstice.Trainer(given).fit(experiment or exp(), **arguments)


def train(*given, **arguments):
    arguments = arguments if given else {**DS, **arguments}
    return exp().train(*given, callbacks=arguments.pop("callbacks", []), **arguments)


def batch_of(*arrays):
    return lambda: train(arrays, batch_size=16)


def unannotated():
    class Mine(Own):
        def __init__(self):
            self.weight = jnp.zeros(4)

    return Mine()


def forgets_replace(self, batch):
    self.w = self.w + 1
    return self, {}


def branches(self, batch):
    x, _ = batch
    return self, {"loss": jnp.ones(()) if x.sum() > 0 else jnp.zeros(())}


def hook(name):
    def make():
        kind = type("Mine", (solstice.Callback,), {name: lambda self, *given: None})
        fit(given=[kind()])

    return make


class Table:
    """A table as that of pandas or polars, which need not be installed."""

    def __init__(self, *shape):
        self.shape = shape

    def __array__(self, *given, **more):
        return np.zeros(self.shape, np.float32)


def table(library, *shape):
    return type("DataFrame" if len(shape) == 2 else "Series", (Table,), {"__module__": library})(
        *shape
    )


class ScipySparse:
    shape, ndim, dtype = (64, 4), 2, np.dtype(np.float32)


ScipySparse.__module__ = "scipy.sparse._csr"

KEYWORDS = {
    # what is typed on what: the words of the line to write
    ("train", "epochs"): "`num_epochs=`",
    ("train", "max_epochs"): "`num_epochs=`",
    ("train", "n_epochs"): "`num_epochs=`",
    ("train", "steps"): "`max_steps=`",
    ("train", "bs"): "`batch_size=`",
    ("train", "verbose"): "`callbacks=[solstice.callbacks.ProgressBar()]`",
    ("train", "shuffle"): "shuffle=True",
    ("train", "validation_split"): "`val_ds=(x[:n], y[:n])`",
    ("train", "sample_weight"): "`train_ds=(x, y, w)`",
    ("train", "learning_rate"): "`optax.adam(1e-3)`",
    ("train", "num_epoch"): "`num_epochs=`",
    ("fit", "validation_data"): "`val_ds=`",
    ("fit", "val_dataloaders"): "`val_ds=`",
    ("fit", "train_dataloaders"): "`train_ds=`",
    ("fit", "ckpt_path"): "`resume=`",
    ("fit", "resume_from_checkpoint"): "`resume=`",
    ("fit", "callbacks"): "an argument of solstice.Trainer",
    ("fit", "mesh"): "an argument of solstice.Trainer",
    ("Trainer", "max_epochs"): "solstice.Trainer.fit: `num_epochs=`",
    ("Trainer", "accumulate_grad_batches"): "`optax.MultiSteps(optimizer, 4)`",
    ("Trainer", "devices"): 'mesh="all"',
    ("Trainer", "accelerator"): 'mesh="all"',
    ("Trainer", "precision"): "solstice.compat.mixed_precision(model",
    ("Trainer", "gradient_clip_val"): "optax.clip_by_global_norm",
    ("Trainer", "logger"): "`callbacks=[solstice.loggers.CSV(",
    ("Trainer", "enable_progress_bar"): "`callbacks=[]`",
    ("Trainer", "val_check_interval"): "`val_every_n_steps=`",
    ("Trainer", "limit_train_batch"): "`limit_train_batches=`",
    ("EarlyStopping", "restore_best_weights"): "solstice.checkpoint.load(saver.best",
    ("EarlyStopping", "patient"): "`patience=`",
    ("Checkpoint", "save_top_k"): "`keep_best=`",
    ("Checkpoint", "save_best_only"): "`keep_best=`",
    ("Checkpoint", "dirpath"): "`directory=`",
    ("Checkpoint", "every_n_epochs"): "`every_epochs=`",
    ("experiment", "lr"): "`optax.adam(1e-3)`",
    ("experiment", "n_classes"): "`num_classes=`",
    ("experiment", "class_weight"): "`class_weights=`",
    ("experiment", "rng"): "`seed=`",
    ("fit", "loss"): "in its `train_step` or its task",
    ("test", "batchsize"): "`batch_size=`",
}
CALLS = {
    "train": exp().train,
    "fit": solstice.Trainer().fit,
    "Trainer": solstice.Trainer,
    "EarlyStopping": callbacks.EarlyStopping,
    "Checkpoint": callbacks.Checkpoint,
    "experiment": solstice.ClassificationExperiment,
    "test": solstice.test,
}

MISTAKES = {
    # the data
    "x and y apart": (lambda: train(X, Y, batch_size=16), "Give both in one argument: `(x, y)`"),
    "x alone, no size": (lambda: train(X), "`batch_size=32`"),
    "no batch size": (lambda: train((X, Y)), "`batch_size=32`"),
    "no batch size in test": (lambda: exp().test((X, Y)), "`batch_size=32`"),
    "a size for batches": (lambda: train([(X, Y)], batch_size=16), "leave batch_size out"),
    "a size for a function": (
        lambda: fit(train_ds=lambda: [(X, Y)], val_ds=(X, Y)),
        "`solstice.data.batches(arrays, 16)`",
    ),
    "no size for the validation": (
        lambda: fit(train_ds=data.batches((X, Y), 16), val_ds=(X, Y), batch_size=None),
        "`val_ds=solstice.data.batches(val_ds, 32)`",
    ),
    "examples": (lambda: train([*zip(X, Y, strict=True)]), "`tuple(np.stack(part) for part"),
    "examples with a size": (
        lambda: train([{"x": x, "y": y} for x, y in zip(X, Y, strict=True)], batch_size=16),
        "{key: np.stack([one[key] for one in train_ds]) for key in train_ds[0]}, batch_size=32",
    ),
    "lists": (batch_of(X.tolist(), Y.tolist()), "`train_ds=(np.asarray(x), np.asarray(y))`"),
    "a list of labels": (batch_of(X, Y.tolist()), "`train_ds=(x, np.asarray(y))`"),
    "pandas": (
        batch_of(table("pandas.core", 64, 4), table("pandas.core", 64)),
        '`train_ds=(x.to_numpy("float32"), y.to_numpy())`',
    ),
    "a data frame alone": (
        lambda: train(table("pandas.core", 64, 4), batch_size=16),
        '`train_ds=df.to_numpy("float32")`',
    ),
    "polars": (
        batch_of(table("polars.frame", 64, 4), table("polars.series", 64)),
        '`train_ds=(x.to_numpy().astype("float32"), y.to_numpy())`',
    ),
    "a sparse matrix": (batch_of(ScipySparse(), Y), "`train_ds=(x.toarray(), y)`"),
    "one-hot labels": (batch_of(X, np.eye(2)[Y]), "`labels.argmax(axis=-1)`"),
    "labels of shape [n, 1]": (batch_of(X, Y[:, None]), "`labels[:, 0]`"),
    "labels of floats": (batch_of(X, Y.astype(float)), "`labels.astype(int)`"),
    "labels of text": (batch_of(X, np.array(["a", "b"])[Y]), "np.unique(labels, return_inverse"),
    "labels from 1": (batch_of(X, Y + 1), "`labels - 1`"),
    "other lengths": (batch_of(X, Y[:60]), "[64, 60]"),
    "a dict": (lambda: train({"x": X, "y": Y}, batch_size=16), "`(batch['x'], batch['y'])`"),
    "a generator": (
        lambda: fit(train_ds=((X, Y) for _ in "ab"), batch_size=None, num_epochs=2),
        "`train_ds=my_generator`",
    ),
    "an empty list": (lambda: fit(train_ds=[], batch_size=None), "it gave no batch"),
    "half an epoch": (lambda: fit(num_epochs=2.5), "not a whole number"),
    "a size of 0": (lambda: fit(batch_size=0), "1 or more"),
    # the model
    "too few classes": (lambda: fit(exp(num_classes=3)), "Change its last layer, or num_classes"),
    "other features": (lambda: fit(exp(net(inputs=5))), "was given this batch: (f32[16,4]"),
    "the class of a model": (lambda: exp(eqx.nn.MLP), "give an instance of it"),
    "an optimiser by name": (
        lambda: solstice.ClassificationExperiment(net(), "adam", 2),
        "no installed adapter wraps a builtins.str",
    ),
    "a function for an optimiser": (
        lambda: solstice.ClassificationExperiment(net(), lambda rate: Sgd(rate), 2),
        "Call it, and give its result",
    ),
    "a model for an Experiment": (lambda: fit(net()), "`solstice.ClassificationExperiment(model"),
    "the summary of a class": (lambda: solstice.summary(eqx.nn.MLP), "write `MLP(...)`"),
    # an Experiment of one's own
    "a field without an annotation": (unannotated, "write `weight: Any`"),
    "an assignment in a step": (
        lambda: fit(own(train_step=forgets_replace)),
        "`self = solstice.replace(self, w=...)`",
    ),
    "no result": (
        lambda: fit(own(train_step=lambda self, batch: None)),
        "`return solstice.replace(self, ...), metrics`",
    ),
    "only the Experiment": (
        lambda: fit(own(train_step=lambda self, batch: self)),
        "`return solstice.replace(self, ...), metrics`",
    ),
    "swapped results": (
        lambda: fit(own(train_step=lambda self, batch: ({}, self))),
        "`return solstice.replace(self, ...), metrics`",
    ),
    "a branch": (lambda: fit(own(train_step=branches)), "jnp.where"),
    "the index of the batch": (
        lambda: fit(own(train_step=lambda self, batch, index: (self, {}))),
        "train_step was given this batch",
    ),
    "training_step": (lambda: own(training_step=lambda self: None), "write `train_step`"),
    "validation_step": (lambda: own(validation_step=lambda self: None), "`eval_step`"),
    "configure_optimizers": (lambda: own(configure_optimizers=lambda self: None), "in a field"),
    "predict without a step": (
        lambda: [*solstice.Trainer().predict(own(), X, batch_size=16)],
        "`def predict_step(self, batch): return outputs`",
    ),
    # callbacks
    "a callback without a list": (
        lambda: solstice.Trainer(callbacks.EarlyStopping("val/loss")),
        "`[EarlyStopping(...)]`",
    ),
    "a callback without a list, in train": (
        lambda: train(callbacks=callbacks.EarlyStopping("val/loss")),
        "`[EarlyStopping(...)]`",
    ),
    "the class of a callback": (lambda: solstice.Trainer([callbacks.NaNGuard]), "`NaNGuard()`"),
    "val_loss": (lambda: callbacks.EarlyStopping("val_loss"), "Write 'val/loss'"),
    "a misspelt monitor": (
        lambda: fit(given=[callbacks.EarlyStopping("val/acuracy")], val_ds=(X, Y)),
        "did you mean 'val/accuracy'?",
    ),
    "no validation": (lambda: fit(given=[callbacks.EarlyStopping("val/loss")]), "a val_ds"),
    "a mode": (lambda: callbacks.EarlyStopping("val/loss", mode="minimum"), '"min" or "max"'),
    "a hook of Lightning": (hook("on_train_epoch_end"), "`def on_epoch_end(self, record):`"),
    "a hook of Keras": (hook("on_epoch_begin"), "`def on_epoch_start(self, record):`"),
    "a misspelt hook": (hook("on_epoch_ends"), "`def on_epoch_end(self, record):`"),
    # the run
    "resume=True": (lambda: fit(resume=True), '"last", "best" or a path'),
    "resume without a Checkpoint": (lambda: fit(resume="last"), "Checkpoint('runs/a')"),
    "a checkpoint that is not there": (
        lambda: solstice.checkpoint.load("nothing", like=exp()),
        "nothing is not a checkpoint",
    ),
    "a monitor of Keras in the history": (
        lambda: history().best("val_loss"),
        "did you mean 'val/loss'?",
    ),
}


def history():
    trainer = solstice.Trainer()
    trainer.fit(exp(), (X, Y), (X, Y), batch_size=16)
    return trainer.history


def said(call) -> str:
    """The message of an error with its notes, or of warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
        except Exception as error:
            text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
            return "\n".join([text, *getattr(error, "__notes__", [])])
    assert caught, "nothing was said"
    return "\n".join(str(warning.message) for warning in caught)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_of_a_newcomer_has_the_line_to_write(name):
    call, words = MISTAKES[name]
    assert words in said(call)


@pytest.mark.parametrize(("who", "keyword"), KEYWORDS)
def test_a_keyword_of_another_library_has_the_one_to_write(who, keyword):
    with pytest.raises(TypeError) as caught:
        CALLS[who](**{keyword: 1})
    assert f"takes no `{keyword}=`" in str(caught.value)
    assert KEYWORDS[who, keyword] in str(caught.value)


def test_all_keywords_of_the_options_are_known():
    assert exp(micro_batches=2).learner is not None
    with pytest.raises(TypeError, match=r"takes no `micro_batch=`\. Write `micro_batches=`"):
        exp(micro_batch=2)
