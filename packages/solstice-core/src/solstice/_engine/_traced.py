"""A step as it was traced: what can be compared with that of another process."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax

from solstice._engine._digest import StepDigest, digest_of_jaxpr
from solstice._engine._program import PROGRAMS, Plan


@dataclass(frozen=True, eq=False)
class Traced:
    """A step as it was traced with batches of one kind.

    Attributes:
        plan: the step.
        structure: of a batch.
        shapes: shape and dtype of each array of a batch.
    """

    plan: Plan
    structure: Any
    shapes: tuple[jax.ShapeDtypeStruct, ...]

    def digest(self) -> StepDigest:
        """What the step computes, which can be compared with another process."""
        return _digest_of(self.plan, self.structure, self.shapes)

    def with_batches(self, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> "Traced":
        """The same step for batches of other shapes; they must have as many arrays."""
        return self if len(shapes) != len(self.shapes) else replace(self, shapes=shapes)


@lru_cache(maxsize=PROGRAMS)
def _digest_of(plan: Plan, batch_structure: Any, batch_shapes: Any) -> StepDigest:
    batch = jax.tree.unflatten(batch_structure, batch_shapes)
    return digest_of_jaxpr(plan.program.trace(list(plan.types), batch)[0])
