"""Traced: a traced step, for comparison with another process."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax

from solstice._engine._digest import StepDigest, digest_of_jaxpr
from solstice._engine._program import PROGRAMS, Plan


@dataclass(frozen=True, eq=False)
class Traced:
    """A step traced with batches of one kind.

    Attributes:
        plan: the traced step.
        structure: the tree structure of a batch.
        shapes: the shape and dtype of each array of a batch.
    """

    plan: Plan
    structure: Any
    shapes: tuple[jax.ShapeDtypeStruct, ...]

    def digest(self) -> StepDigest:
        """The digest of the step, the same in every process."""
        return _digest_of(self.plan, self.structure, self.shapes)

    def with_batches(self, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> "Traced":
        """The same step for batches of other shapes; unchanged if the number of arrays differs."""
        return self if len(shapes) != len(self.shapes) else replace(self, shapes=shapes)


@lru_cache(maxsize=PROGRAMS)
def _digest_of(plan: Plan, batch_structure: Any, batch_shapes: Any) -> StepDigest:
    batch = jax.tree.unflatten(batch_structure, batch_shapes)
    return digest_of_jaxpr(plan.program.trace(list(plan.types), batch)[0])
