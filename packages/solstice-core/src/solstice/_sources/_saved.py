"""The position of a data set in a checkpoint."""

from dataclasses import dataclass, field
from typing import Any

from solstice._schema import SchemaError


@dataclass(frozen=True)
class Identity:
    """The identity of a data set in a checkpoint; see `_identity`."""

    length: int | None
    kind: str | None = None
    checksum: str | None = None
    describe: dict[str, int | bool] = field(default_factory=dict[str, int | bool])


@dataclass(frozen=True)
class SourcePosition:
    """The position of a data set in a checkpoint; see `Source.position`."""

    state: Any
    behind: int = 0
    kind: str = ""
    next: str | None = None
    identity: Identity | None = None
    validation: Identity | None = None

    def __post_init__(self) -> None:
        if self.behind > 1:
            raise SchemaError(f"note['run']['data']['behind'] must be 0 or 1; it is {self.behind}")
        if self.state is not None and not self.kind:
            raise SchemaError("note['run']['data'] has a state without a 'kind'")
