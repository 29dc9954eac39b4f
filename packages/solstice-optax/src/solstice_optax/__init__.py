"""Solstice adapter for Optax: `solstice.compat.OptaxOptimizer`."""

from solstice_optax._optimizer import OptaxOptimizer

__all__ = ["OptaxOptimizer"]
