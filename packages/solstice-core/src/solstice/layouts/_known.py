"""Layouts: paths and axes of common layers' weights in each framework."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

Layout: TypeAlias = Mapping[str, Mapping[str, tuple[str, str]]]
"""By kind of layer and name of a part: the path of the leaf in its layer, and its axes.

`{"dense": {"kernel": ("weight", "oi"), "bias": ("bias", "o")}}` describes a framework that stores
the kernel of a dense layer with the outputs first. If an axis is split into several, its letter is
repeated: "ioo" is a kernel with the outputs as heads times features. "1" is an additional axis of
length 1; leading ones may be omitted. "hw" stands for one to three spatial axes. A leaf that holds
three layers of one size, one after the other along the outputs, is `"in_proj_weight[0/3]"` for the
first of them.

A norm has further parts if its framework stores more than the averages "mean" and "var":
"mean_hidden" and "var_hidden" are written like these, and "mean_steps" and "var_steps" count the
updates behind them.
"""


def _attention(
    query: str, key: str, value: str, out: str, kernel: tuple[str, ...], bias: tuple[str, ...]
) -> dict[str, tuple[str, str]]:
    """The layout of four dense layers.

    `kernel` and `bias` are a leaf's name, its axes, and its axes in the output layer, whose inputs
    are split into heads.
    """
    places = {"query": query, "key": key, "value": value, "out": out}
    return {
        f"{part}_{name}": (f"{place}/{leaf}", out_axes if part == "out" else axes)
        for part, place in places.items()
        for name, (leaf, axes, out_axes) in (("kernel", kernel), ("bias", bias))
    }


AXES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "dense": {"kernel": "io", "bias": "o"},
        "conv": {"kernel": "hwio", "bias": "o"},
        "norm": {"scale": "o", "bias": "o", "mean": "o", "var": "o"},
        "embedding": {"table": "vo"},
        "attention": {
            part: axes
            for name in ("query", "key", "value", "out")
            for part, axes in ((f"{name}_kernel", "io"), (f"{name}_bias", "o"))
        },
    }
)
"""The parts of each kind of layer and the order of their axes in `Weights`.

The axes are (h)eight, (w)idth, (i)nputs, (o)utputs and (v)ocabulary.
"""

FLAX: Layout = {
    "dense": {"kernel": ("kernel", "io"), "bias": ("bias", "o")},
    "conv": {"kernel": ("kernel", "hwio"), "bias": ("bias", "o")},
    "norm": {
        "scale": ("scale", "o"),
        "bias": ("bias", "o"),
        "mean": ("mean", "o"),
        "var": ("var", "o"),
    },
    "embedding": {"table": ("embedding", "vo")},
    "attention": _attention(
        "query", "key", "value", "out", ("kernel", "ioo", "iio"), ("bias", "oo", "o")
    ),
}
"""The layout of Linen and NNX."""

HAIKU: Layout = {
    "dense": {"kernel": ("w", "io"), "bias": ("b", "o")},
    "conv": {"kernel": ("w", "hwio"), "bias": ("b", "o")},
    "norm": {
        "scale": ("scale", "o"),
        "bias": ("offset", "o"),
        "mean": ("~/mean_ema/average", "o"),
        "var": ("~/var_ema/average", "o"),
        "mean_hidden": ("~/mean_ema/hidden", "o"),
        "var_hidden": ("~/var_ema/hidden", "o"),
        "mean_steps": ("~/mean_ema/counter", ""),
        "var_steps": ("~/var_ema/counter", ""),
    },
    "embedding": {"table": ("embeddings", "vo")},
    "attention": _attention("query", "key", "value", "linear", ("w", "io", "io"), ("b", "o", "o")),
}

EQUINOX: Layout = {
    "dense": {"kernel": ("weight", "oi"), "bias": ("bias", "o")},
    "conv": {"kernel": ("weight", "oihw"), "bias": ("bias", "o11")},
    "norm": {
        "scale": ("weight", "o"),
        "bias": ("bias", "o"),
        "mean": ("state/0", "o"),
        "var": ("state/1", "o"),
        "mean_steps": ("steps", ""),
    },
    "embedding": {"table": ("weight", "vo")},
    "attention": _attention(
        "query_proj", "key_proj", "value_proj", "output_proj",
        ("weight", "oi", "oi"), ("bias", "o", "o"),
    ),
}  # fmt: skip
"""The layout of Equinox; the averages of its BatchNorm are in its `eqx.nn.State`."""

STAX: Layout = {
    "dense": {"kernel": ("0", "io"), "bias": ("1", "o")},
    "conv": {"kernel": ("0", "hwio"), "bias": ("1", "o")},
    "norm": {"scale": ("1", "o"), "bias": ("0", "o")},
}

TORCH: Layout = {
    "dense": {"kernel": ("weight", "oi"), "bias": ("bias", "o")},
    "conv": {"kernel": ("weight", "oihw"), "bias": ("bias", "o")},
    "norm": {
        "scale": ("weight", "o"),
        "bias": ("bias", "o"),
        "mean": ("running_mean", "o"),
        "var": ("running_var", "o"),
    },
    "embedding": {"table": ("weight", "vo")},
    "attention": {
        **{
            f"{part}_{name}": (f"in_proj_{leaf}[{index}/3]", axes)
            for index, part in enumerate(("query", "key", "value"))
            for name, leaf, axes in (("kernel", "weight", "oi"), ("bias", "bias", "o"))
        },
        "out_kernel": ("out_proj/weight", "oi"),
        "out_bias": ("out_proj/bias", "o"),
    },
}
"""The layout of `state_dict()` in torch, with "/" for the dots."""

KERAS: Layout = {
    "dense": {"kernel": ("kernel", "io"), "bias": ("bias", "o")},
    "conv": {"kernel": ("kernel", "hwio"), "bias": ("bias", "o")},
    "norm": {
        "scale": ("gamma", "o"),
        "bias": ("beta", "o"),
        "mean": ("moving_mean", "o"),
        "var": ("moving_variance", "o"),
    },
    "embedding": {"table": ("embeddings", "vo")},
    "attention": _attention(
        "query", "key", "value", "attention_output", ("kernel", "ioo", "iio"), ("bias", "oo", "o")
    ),
}
"""The layout of Keras, by the paths of `model.weights`."""
