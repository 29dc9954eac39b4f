"""JAX's tree functions, typed: what JAX itself leaves unknown to a strict checker."""

from typing import Any, cast

import jax


def leaves(tree: Any) -> list[Any]:
    """The leaves of a tree."""
    return cast("Any", jax.tree.leaves(tree))


def structure(tree: Any) -> Any:
    """The structure of a tree, which hashes and compares."""
    return cast("Any", jax.tree.structure(tree))


def leaves_by_path(tree: Any) -> list[tuple[str, Any]]:
    """Each leaf with its path, as in `.params['w']`."""
    found = cast("Any", jax.tree_util.tree_leaves_with_path(tree))
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in found]
