"""`solstice.summary`, `plan` and others: look at an Experiment before it runs for long."""

from solstice.inspect._compiles import watch_compiles
from solstice.inspect._learning_rate import LearningRates, find_learning_rate
from solstice.inspect._plan import StepPlan, plan
from solstice.inspect._summary import Part, Summary, summary

__all__ = [
    "LearningRates",
    "Part",
    "StepPlan",
    "Summary",
    "find_learning_rate",
    "plan",
    "summary",
    "watch_compiles",
]
