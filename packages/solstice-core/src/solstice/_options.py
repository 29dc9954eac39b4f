"""Options: the options of a Trainer, checked."""

from dataclasses import dataclass, replace

import numpy as np

from solstice._arguments import whole, whole_or_none


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a Trainer; see `solstice.Trainer`.

    Attributes:
        fast_dev_run: the number of batches of a quick run, or None for a normal run.
    """

    limit_train_batches: int | None
    limit_val_batches: int | None
    val_every_n_steps: int | None
    prefetch: int
    steps_per_call: int | None
    fast_dev_run: int | None
    overfit_batches: int | None
    sanity_val_batches: int | None

    @staticmethod
    def of(*, prefetch: int, fast_dev_run: object, **numbers: int | None) -> "Options":
        """`Options.of(prefetch=0, ...)`: the options as the user has written them.

        Raises:
            ValueError: a number is out of range, or not an integer.
        """
        tried = _num_tried(fast_dev_run)
        checked = {name: whole_or_none(name, value) for name, value in numbers.items()}
        prefetch = whole("prefetch", prefetch, 0, "batches")
        options = Options(prefetch=prefetch, fast_dev_run=tried, **checked)
        if tried is None:
            return options
        return replace(options, limit_train_batches=tried, limit_val_batches=tried)


def _num_tried(fast_dev_run: object) -> int | None:
    """The number of batches of a `fast_dev_run`; None for a normal run."""
    if isinstance(fast_dev_run, bool | np.bool_):
        return 1 if fast_dev_run else None
    is_off = type(fast_dev_run) is int and fast_dev_run == 0
    return None if is_off else whole("fast_dev_run", fast_dev_run, 1, "batches, True or False")
