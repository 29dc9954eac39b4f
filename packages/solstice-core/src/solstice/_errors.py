"""The exceptions of Solstice."""


class DataError(ValueError):
    """A data set or a batch cannot be used: it is empty, exhausted, or does not fit the step."""


class ExperimentError(TypeError):
    """An Experiment breaks its contract: a step returned something else than it must."""


class CompileBudgetError(RuntimeError):
    """More programs were compiled than `max_compiles` allows."""


class CheckpointError(Exception):
    """A checkpoint cannot be written, is damaged, or is of another tree. The message says which."""


class ShardingError(ValueError):
    """A mesh or a sharding cannot be used: it does not fit the devices or the arrays."""
