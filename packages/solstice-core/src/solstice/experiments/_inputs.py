"""Checks of the inputs and params of a model, with hints about what to write."""

from collections.abc import Generator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

from solstice import _tree
from solstice._arguments import numeric, shown
from solstice._batch import describe_batch
from solstice._errors import DataError
from solstice._types import AnyArray, Inputs
from solstice.compat import Params
from solstice.experiments._checks import is_of


def several_hint(expected: tuple[str, ...], given: tuple[str, ...]) -> str:
    """The hint for a model with several inputs of which only some were given."""
    is_tuple = all(shape.startswith(f"[{index}][") for index, shape in enumerate(expected))
    if not is_tuple or len(expected) <= max(len(given), 1):
        return ""
    names = ", ".join("abcdefgh"[: len(expected)])
    return f". The {len(expected)} inputs of the model are one tuple: `({names})`, `(({names}), y)`"


@contextmanager
def floating_expected(x: Inputs) -> Generator[None, None, None]:
    """Raises a DataError with a hint if a model fails on integer inputs, such as pixels.

    Each framework has its own error for this, so the text of the error decides.
    """
    try:
        yield
    except jax.errors.JAXTypeError:  # the model read a value while tracing: not about the dtype
        raise
    except Exception as error:
        whole = [leaf for leaf in _tree.leaves(x) if _is_whole(leaf) and _is_about(error, leaf)]
        if not whole:
            raise
        numbers = "(x / 255)" if whole[0].dtype == np.uint8 else "x"
        raise DataError(
            f"the model takes floating point, and the features are {describe_batch(x)}: write "
            f"`{numbers}.astype('float32')` ({str(error).splitlines()[0]:.200})"
        ) from error


def _is_whole(leaf: object) -> bool:
    return is_of(leaf, jnp.bool_, jnp.integer)


_WORDS = ("dtype", "finfo", "float", "inexact")
"""Words of JAX, NumPy and the frameworks in errors about a dtype."""


def _is_about(error: Exception, leaf: AnyArray) -> bool:
    """Whether the error is about the dtype of this leaf."""
    text = str(error)
    return leaf.dtype.name in text and any(word in text for word in _WORDS)


def check_sample(sample_input: Inputs) -> None:
    """Raises a TypeError unless it is a batch of inputs; the model's own error would be unclear."""
    for path, leaf in _tree.leaves_by_path(sample_input):
        numeric(f"sample_input{path}", leaf)
    if not any(np.ndim(leaf) for leaf in _tree.leaves(sample_input)):
        raise TypeError(
            f"sample_input must be inputs of a batch, arrays whose axis 0 is the example; it is "
            f"{shown(sample_input)}"
        )


def check_fits(name: str, given: Params, own: Params) -> None:
    """Raises a ValueError if the given values are not those of the Learner's model."""
    mine, theirs = _kinds(own), _kinds(given)
    if mine != theirs:
        path = next(p for p in [*mine, *theirs] if mine.get(p) != theirs.get(p))
        does, it_has = ("do", "they have") if name == "params" else ("does", "it has")
        raise ValueError(
            f"the given {name} {does} not fit the model: at `{path or '.'}` the model has "
            f"{mine.get(path, 'nothing')}, and {it_has} {theirs.get(path, 'nothing')}. "
            f"A Learner has {name} after `setup(x)`"
        )


def _kinds(values: Params) -> dict[str, str]:
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in _tree.leaves_by_path(values)}


def check_params(params: Params) -> None:
    for path, leaf in _tree.leaves_by_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"the params of the model have {leaf.dtype} at `{path}`, which has no gradient. "
                f"Keep it in the model's state (in Linen a variable of another "
                f"collection, in Haiku `hk.get_state`), or make it a constant"
            )
