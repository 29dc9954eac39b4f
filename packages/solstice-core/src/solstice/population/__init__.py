"""Populations: many members of one Experiment, trained in one program."""

from solstice.population._evolve import Evolve
from solstice.population._hyperparameters import grid
from solstice.population._population import Population

__all__ = ["Evolve", "Population", "grid"]
