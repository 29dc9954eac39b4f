"""The errors that Solstice raises about what it was given."""


class DataError(ValueError):
    """A data set or a batch cannot be used: empty, exhausted, or not what the step takes."""


class ExperimentError(TypeError):
    """An Experiment breaks its contract: what a step returned is not what it must return."""


class CompileBudgetError(RuntimeError):
    """More programs were compiled than `max_compiles` allows."""
