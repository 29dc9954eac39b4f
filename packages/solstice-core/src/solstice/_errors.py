"""The exceptions of Solstice: of data, of Experiments and of compilation budgets."""


class DataError(ValueError):
    """A data set or a batch cannot be used: it is empty, exhausted, or does not fit the step."""


class ExperimentError(TypeError):
    """An Experiment breaks its contract: a step returned something else than it must."""


class CompileBudgetError(RuntimeError):
    """More programs were compiled than `max_compiles` allows."""
