"""Detection of the training flags in a module's `__call__`."""

import inspect
from typing import Any

_TRAIN_NAMES = ("train", "training", "is_training")
_EVAL_NAMES = ("deterministic", "eval", "inference", "use_running_average")


def training_flags(module: Any, train_arg: str | None) -> dict[str, bool]:
    """The flags in the module's signature, by name, with their values in training.

    Args:
        module: a module with a `__call__`.
        train_arg: the name of another flag that is True in training.

    Raises:
        TypeError: `__call__` has no parameter `train_arg`.
    """
    names = set(inspect.signature(module.__call__).parameters)
    if train_arg is not None and train_arg not in names:
        raise TypeError(
            f"{type(module).__name__}.__call__ has no parameter {train_arg!r}; it has: "
            f"{', '.join(sorted(names))}"
        )
    in_training = {name: True for name in (*_TRAIN_NAMES, train_arg) if name in names}
    in_evaluation = {name: False for name in _EVAL_NAMES if name in names and name != train_arg}
    return {**in_training, **in_evaluation}
