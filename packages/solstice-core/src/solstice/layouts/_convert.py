"""convert: weights of another framework, file or net, in the form of Params."""

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from os import PathLike
from typing import Any, TypeVar

import numpy as np

from solstice._arguments import mapping, names
from solstice.layouts import _flattened
from solstice.layouts._axes import Place, from_order, joined, to_order
from solstice.layouts._known import Layout
from solstice.layouts._match import Pairs
from solstice.layouts._named import Named, is_inexact, named, on_host, rebuilt, without_bias
from solstice.layouts._registry import layout_for, layout_of
from solstice.layouts._selected import Sides, pairs_of
from solstice.layouts._source import check_dtype, check_output, tree_of, write_file
from solstice.layouts._units import AVERAGES, Unit, units_of

_T = TypeVar("_T")

_MANY_STEPS = 2**30
"""Updates behind averages that come from elsewhere: their bias towards the start is gone."""


def convert(
    source: object,
    like: _T,
    layout: str | Layout,
    *,
    layers: Mapping[str, str | None] | None = None,
    unused: str | tuple[str, ...] | list[str] = (),
    flattened: Mapping[str, int] | None = None,
    like_layout: str | Layout | None = None,
    to: str | PathLike[str] | None = None,
) -> _T:
    """`exp = solstice.convert("model.safetensors", like=exp, layout="torch")`: weights of others.

    ```python
    exp = exp.with_params(solstice.convert("model.safetensors", like=exp.params, layout="torch"))
    net.load_state_dict(solstice.convert(exp, like=net.state_dict(), layout="flax"))
    ```

    Layers are matched by kind and shape, and layers of one shape by the words of their paths and in
    the order of their numbers. Each layer of `like` must get weights, and each weight of `source`
    must be used. The running averages of BatchNorm are weights of a `source`, and belong to the
    state of a model: with them, `like` is an Experiment, or a pair of Params and State.

    Args:
        source: a path of a file of safetensors; a dict of arrays by path, such as `state_dict()`; a
            `torch.nn.Module` or a Keras model; Params, a pair of Params and State, or an
            Experiment.
        like: what gets the weights: Params, a pair of Params and State, an Experiment with
            `with_params`, or a dict of arrays by path, such as `state_dict()`. It gives structure,
            shapes, dtypes and devices.
        layout: that of `source`: "torch", "keras", "flax" (Linen), "nnx", "haiku", "equinox" or
            "stax", one of an installed package, or a `solstice.layouts.Layout`.
        layers: by the path of a layer, or of a module with several, in `like`: its path in
            `source`, or None to keep the values of `like`. A "*" in both stands for a number.
        unused: names in `source` that are not needed, with "*" for any text.
        flattened: by the path of each dense layer in `like` whose inputs are a flattened image: its
            channels. torch flattens images with their channels first, and Linen with their channels
            last. By default it is worked out from the shapes, with a warning. Outputs of a dense
            layer that become an image, as in a decoder, keep their order.
        like_layout: the layout of `like`, if it is not clear from its names.
        to: a path ending in .safetensors, to which the result is also written.

    Returns:
        `like` with the weights of `source`. The optimiser's state of an Experiment starts again.

    Raises:
        ValueError: layers have no counterpart, or several; or a file is damaged. The message has
            the argument to write.
        TypeError: `source` holds something else than arrays of floats.
    """
    file = None if to is None else check_output(to)
    mine, tree = named(like), tree_of(source)
    theirs = named(tree)
    values = {name: on_host(leaf) for name, leaf in theirs.arrays.items()}
    values = _used(without_bias(tree, values), names("unused", unused) or (), theirs)
    their_layout = layout_of("layout", layout)
    my_layout = layout_for(like, mine.arrays, like_layout)
    sides = Sides(
        _weights(mine.arrays, my_layout), _weights(values, their_layout), mine.shown, theirs.shown
    )
    pairs = pairs_of(sides, mapping("layers", layers, "{'Dense_0': 'fc1'}"))
    _check_transposed(pairs, sides)
    _check_averages(pairs, sides)
    fix = _order_of_inputs(pairs, my_layout, their_layout, flattened)
    new = _new_leaves(pairs, values, mine.arrays, fix)
    result = rebuilt(like, new)
    if file is not None:
        saved = named(result)
        write_file(file, {saved.shown(name): on_host(x) for name, x in saved.arrays.items()})
    return result


def _used(
    values: dict[str, np.ndarray[Any, Any]], unused: tuple[str, ...], owner: Named
) -> dict[str, np.ndarray[Any, Any]]:
    """The leaves without the unused ones."""
    for given in unused:
        pattern = given.replace(".", "/") if owner.has_dots else given
        found = [name for name in values if _covers(pattern, name)]
        if not found:
            there = ", ".join(map(owner.shown, [*values][:8]))
            raise ValueError(f"unused={given!r} matches nothing in the source; it has {there}")
        values = {name: value for name, value in values.items() if name not in found}
    return values


def _covers(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}/*")


def _weights(leaves: Mapping[str, Any], layout: Layout) -> list[Unit]:
    """The layers, and the arrays of floats that are in none."""
    return [
        unit
        for unit in units_of(leaves, layout)
        if "array" not in unit.forms or is_inexact(leaves[unit.path])
    ]


def _check_transposed(pairs: Pairs, sides: Sides) -> None:
    """Raises a ValueError for a transposed convolution, as far as a path says that it is one."""
    for mine, theirs in pairs:
        path = sides.my_path(mine)
        if "conv" in mine.forms and "transpose" in f"{mine.path} {theirs.path}".lower():
            raise ValueError(
                f"{path!r} is a transposed convolution, whose kernels differ in more than the "
                f"order of axes. Keep its values with `layers={{{path!r}: None}}` and "
                f"`unused={[sides.their_path(theirs)]}`, and convert it by hand"
            )


def _check_averages(pairs: Pairs, sides: Sides) -> None:
    """Raises a ValueError if one side of a norm has running averages, and the other has none."""
    for mine, theirs in pairs:
        has, gets = (_averages(unit) for unit in (theirs, mine))
        if has and not gets:
            patterns = [f"*{place.leaf.rpartition('/')[2]}" for place in has]
            raise ValueError(
                f"{sides.their_path(theirs)!r} in the source has running averages, {has[0].leaf}, "
                f"which belong to the state of a model. Write `exp = solstice.convert(..., "
                f"like=exp, ...)`, `like=(params, state)`, or leave them out: "
                f"`unused={patterns}`"
            )
        if gets and not has:
            raise ValueError(
                f"{sides.my_path(mine)!r} has running averages, and {sides.their_path(theirs)!r} "
                f"in the source has none. Give a source with them, such as `(params, state)`; or "
                f"`like=exp.params`, which keeps the present ones"
            )


def _averages(unit: Unit) -> list[Place]:
    parts = unit.forms.get("norm", {})
    return [parts[name] for name in AVERAGES if name in parts]


def _order_of_inputs(
    pairs: Pairs, mine: Layout, theirs: Layout, given: Mapping[str, int] | None
) -> Callable[[Unit, np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """A function that puts the inputs of dense layers into the order of `mine`."""
    from_first = _flattened.is_channels_first(theirs)
    dense = {unit.path: unit for unit, _ in pairs if "dense" in unit.forms}
    channels = _flattened.checked(mapping("flattened", given, "{'Dense_0': 64}"), dense)
    if _flattened.is_channels_first(mine) == from_first:
        channels = {}
    elif given is None:
        channels = _flattened.channels_of(pairs)
        _flattened.warn(channels)

    def fix(unit: Unit, kernel: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        count = channels.get(unit.path)
        return _flattened.reordered(kernel, count, from_first=from_first) if count else kernel

    return fix


def _new_leaves(
    pairs: Pairs,
    values: Mapping[str, np.ndarray[Any, Any]],
    likes: Mapping[str, Any],
    fix: Callable[[Unit, np.ndarray[Any, Any]], np.ndarray[Any, Any]],
) -> dict[str, np.ndarray[Any, Any]]:
    pieces: dict[str, dict[Place, np.ndarray[Any, Any]]] = {}
    for mine, theirs in pairs:
        for part, place, value in _moved(mine, theirs, values, likes):
            whole = fix(mine, value) if part == "kernel" and "dense" in mine.forms else value
            check_dtype(place.leaf, value, likes[place.leaf])
            piece = from_order(place, whole, likes[place.leaf])
            pieces.setdefault(place.leaf, {})[place] = piece
    return {leaf: joined(found) for leaf, found in pieces.items()}


def _moved(
    mine: Unit, theirs: Unit, values: Mapping[str, np.ndarray[Any, Any]], likes: Mapping[str, Any]
) -> Iterator[tuple[str, Place, np.ndarray[Any, Any]]]:
    """Each part of a layer, its place in `like`, and its value."""
    kind = next(kind for kind in mine.forms if kind in theirs.forms and _alike(mine, theirs, kind))
    for part, place in mine.forms[kind].items():
        base, _, what = part.partition("_")
        if what == "steps":
            is_flag = likes[place.leaf].dtype == np.bool_  # of a first step that is still to come
            yield part, place, np.asarray(0 if is_flag else _MANY_STEPS)
        elif kind == "array":
            yield part, place, values[theirs.path]
        else:
            other = theirs.forms[kind][base]
            yield part, place, to_order(other, values[other.leaf])


def _alike(mine: Unit, theirs: Unit, kind: str) -> bool:
    return all(
        shape == theirs.shapes[kind].get(part)
        for part, shape in mine.shapes[kind].items()
        if part not in AVERAGES
    )
