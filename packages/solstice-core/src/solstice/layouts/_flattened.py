"""Dense layers after a flattened image, whose inputs have another order in another framework."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from solstice._arguments import whole
from solstice.layouts._known import Layout
from solstice.layouts._match import Pairs
from solstice.layouts._units import Unit


def is_channels_first(layout: Layout) -> bool:
    """Whether images have their channels first where convolutions have kernels like these."""
    axes = layout.get("conv", {}).get("kernel", ("", "hwio"))[1]
    return axes.index("i") < axes.index("h")


def reordered(
    kernel: np.ndarray[Any, Any], channels: int, *, from_first: bool
) -> np.ndarray[Any, Any]:
    """The kernel of a dense layer for an image that is flattened in the other order."""
    inputs, outputs = kernel.shape
    shape = (channels, inputs // channels) if from_first else (inputs // channels, channels)
    return kernel.reshape(*shape, outputs).swapaxes(0, 1).reshape(inputs, outputs)


def checked(given: Mapping[str, object], dense: Mapping[str, Unit]) -> dict[str, int]:
    """The argument `flattened`, checked against the dense layers of `like`."""
    found: dict[str, int] = {}
    for path, value in given.items():
        channels = found[path] = whole(f"flattened[{path!r}]", value, 1, "channels")
        if path not in dense:
            raise ValueError(
                f"flattened={{{path!r}: ...}} names no dense layer; there is {_some(dense)}"
            )
        size = _sizes(dense[path])[0]
        if size % channels:
            raise ValueError(
                f"flattened={{{path!r}: {channels}}} does not fit: it has {size} inputs, which are "
                f"not images of {channels} channels"
            )
    return found


def channels_of(pairs: Pairs) -> dict[str, int]:
    """The channels of the image that each dense layer gets flattened, as the shapes suggest.

    The last convolution is the one whose channels no other layer takes. A dense layer takes its
    image if the inputs are a multiple of the channels, and no layer has as many outputs.

    Raises:
        ValueError: there are several ways.
    """
    units = [mine for mine, _ in pairs]
    convs = [_sizes(unit) for unit in units if "conv" in unit.forms]
    dense = {unit.path: _sizes(unit) for unit in units if "dense" in unit.forms}
    tables = [unit.shapes["embedding"]["table"] for unit in units if "embedding" in unit.forms]
    changes = [(i, o) for i, o in [*convs, *dense.values()] if i != o]
    taken = {i for i, _ in changes} | {i for i, _ in dense.values()}
    last = {o for _, o in convs} - taken or {o for _, o in convs}
    born = {o for _, o in changes} | {width for _, width in tables}
    fed = {path: _factors(i, last) for path, (i, _) in dense.items() if i not in born}
    fed = {path: channels for path, channels in fed.items() if channels}
    if not fed and {o for _, o in convs} - taken:
        fed = {path: _factors(i, last) for path, (i, _) in dense.items()}
        fed = {path: (*channels, 1) for path, channels in fed.items() if channels}
    if any(len(channels) > 1 for channels in fed.values()) or _is_chain(fed, dense):
        raise ValueError(_question(fed, dense))
    return {path: channels[0] for path, channels in fed.items()}


def warn(found: Mapping[str, int]) -> None:
    """Says which inputs were put into another order, and how to confirm it."""
    for path, channels in found.items():
        warnings.warn(
            f"the inputs of {path!r} are taken for a flattened image of {channels} channels, and "
            f"were put into the order of this framework's images. If it is one, write "
            f"`flattened={dict(found)}`; if not, `flattened={{}}`",
            UserWarning,
            stacklevel=3,
        )


def _sizes(unit: Unit) -> tuple[int, int]:
    """Inputs and outputs of a dense layer or convolution."""
    *_, inputs, outputs = unit.shapes["dense" if "dense" in unit.forms else "conv"]["kernel"]
    return inputs, outputs


def _factors(inputs: int, channels: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(c for c in channels if 1 < c < inputs and inputs % c == 0))


def _is_chain(fed: Mapping[str, object], dense: Mapping[str, tuple[int, int]]) -> bool:
    """Whether one of several layers keeps the number of features, and so may feed the others."""
    return len(fed) > 1 and any(dense[path][0] == dense[path][1] for path in fed)


def _question(fed: Mapping[str, tuple[int, ...]], dense: Mapping[str, tuple[int, int]]) -> str:
    shown = ", ".join(f"{path!r} ({dense[path][0]} inputs)" for path in fed)
    path, channels = max(fed.items(), key=lambda item: dense[item[0]][0])  # an image is large
    return (
        f"one of {shown} may get a flattened image, whose order differs between these frameworks. "
        f"Write which one and its channels, such as `flattened={{{path!r}: {channels[0]}}}`; if "
        f"none does, `flattened={{}}`"
    )


def _some(names: Iterable[str]) -> str:
    found = [repr(name) for name in names]
    return ", ".join(found[:8]) + (" ..." if len(found) > 8 else "")
