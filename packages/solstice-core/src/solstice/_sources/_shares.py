"""Shares: data sets of which each process has a part, in a saved run."""

from collections.abc import Mapping
from typing import Any

import jax

from solstice._errors import DataError

_KIND = "share"


def identity_of_share() -> dict[str, Any]:
    """The identity of a share: the number of shares, because the others have other data."""
    return {"kind": _KIND, "describe": {"processes": jax.process_count()}}


def check_shares(name: str, was: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Raises a DataError if a run had another number of shares of its data."""
    new = _num_shares(now)
    old = new if was is None else _num_shares(was)
    if old != new:
        raise DataError(
            f"{name} is read by {_in_words(new)}, and the saved run had {_in_words(old)}: the "
            f"place in one cannot be found in the other. Resume with the same number of processes "
            f"and `per_process`; only without `per_process` can their number change"
        )


def _num_shares(identity: Mapping[str, Any]) -> int:
    """The number of processes with a share of the data; 0 if each reads all of it."""
    is_share = identity.get("kind") == _KIND
    return identity.get("describe", {}).get("processes", 0) if is_share else 0


def _in_words(shares: int) -> str:
    return f"{shares} processes with a share each" if shares else "processes that read all of it"
