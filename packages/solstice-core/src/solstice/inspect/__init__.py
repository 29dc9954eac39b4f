"""`solstice.summary`, `plan` and others: look at an Experiment before it runs for long."""

from solstice.inspect._compiles import watch_compiles
from solstice.inspect._learning_rate import LearningRates, find_learning_rate
from solstice.inspect._plan import StepPlan, plan
from solstice.inspect._replay import Replay, replay
from solstice.inspect._summary import Part, Summary, summary

__all__ = [
    "LearningRates",
    "Part",
    "Replay",
    "StepPlan",
    "Summary",
    "find_learning_rate",
    "plan",
    "replay",
    "summary",
    "watch_compiles",
]
