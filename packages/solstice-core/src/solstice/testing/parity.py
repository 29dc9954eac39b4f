"""Parity: a test that a net trains to the same numbers in several frameworks.

```python
from solstice.testing import parity

parity.assert_parity(
    {
        "linen": parity.Net(linen_mlp, parity.FLAX, {"hidden": ("dense", "Dense_0")}),
        "haiku": parity.Net(haiku_mlp, parity.HAIKU, {"hidden": ("dense", "mlp/linear")}),
    },
    optax.adam(1e-3),
    batches,
)
```

The weights of the first net are copied to the others. The same Experiment trains each net, and the
metrics are compared step by step. For another framework, write a `Layout`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from solstice._experiment import Experiment
from solstice._trainer import Trainer
from solstice._types import Batch
from solstice.callbacks import History
from solstice.compat import Model, Optimizer, as_model, as_optimizer
from solstice.experiments import ClassificationExperiment
from solstice.layouts import (
    AXES,
    EQUINOX,
    FLAX,
    HAIKU,
    STAX,
    Layout,
    Weights,
    read_weights,
    write_weights,
)

__all__ = [
    "AXES",
    "EQUINOX",
    "FLAX",
    "HAIKU",
    "STAX",
    "Layout",
    "Net",
    "Weights",
    "assert_parity",
    "read_weights",
    "write_weights",
]

MakeExperiment: TypeAlias = Callable[[Model, Optimizer], Experiment]


@dataclass(frozen=True)
class Net:
    """`Net(model, parity.FLAX, {"hidden": ("dense", "Dense_0")})`: a net and its layers' paths.

    Attributes:
        model: a `solstice.compat.Model`, or a model of any framework with an adapter.
        layout: the layout of the framework.
        layers: by a name common to all nets, the kind of a layer and its path in the Params.
    """

    model: object
    layout: Layout
    layers: Mapping[str, tuple[str, str]]


def assert_parity(
    nets: Mapping[str, Net],
    optimizer: object,
    batches: Iterable[Batch],
    *,
    experiment: MakeExperiment = ClassificationExperiment,
    steps: int = 50,
    tolerance: float = 1e-5,
) -> None:
    """`assert_parity({"linen": one, "haiku": other}, optax.adam(1e-3), batches)`: compare nets.

    The nets must have neither random layers (Dropout) nor weights with a gradient of zero up to
    rounding (a bias before BatchNorm), which Adam would amplify. Running statistics are neither
    copied nor compared, because frameworks initialise and correct them differently, and training
    does not read them.

    Args:
        nets: two or more nets by name. All start with the weights of the first.
        optimizer: a `solstice.compat.Optimizer`, or an optimiser with an adapter.
        batches: the data, repeated as often as needed.
        experiment: a function from model and optimizer to an Experiment with `params` after
            `setup`, and a method `with_params`, as in the ready-made ones.
        steps: number of training steps.
        tolerance: the largest absolute difference of any metric at any step, and of any weight
            at the end.

    Raises:
        AssertionError: numbers differ; the message names the first step and metric, or the layer.
        KeyError, ValueError: a net's layers are not as declared, or differ between nets.
    """
    data, stepper = list(batches), as_optimizer(optimizer)
    (first, source), *rest = nets.items()
    start = _set_up(source, stepper, data, experiment)
    weights = read_weights(start.params, source.layers, source.layout)
    expected = _trained(start, source, data, steps)
    for name, net in rest:
        exp = _set_up(net, stepper, data, experiment)
        params = write_weights(exp.params, net.layers, net.layout, weights)
        exp = exp.with_params(params)
        found = _trained(exp, net, data, steps)
        _compare(first, expected, name, found, tolerance)


@dataclass(frozen=True)
class _Run:
    """The result of a training: the metrics of each step, and the weights after the last."""

    metrics: list[dict[str, Any]]
    weights: Weights


def _set_up(net: Net, optimizer: Optimizer, data: list[Batch], make: MakeExperiment) -> Any:
    return make(as_model(net.model), optimizer).setup(data[0])


def _trained(start: Any, net: Net, data: list[Batch], steps: int) -> _Run:
    history = History(every=1)
    end = Trainer([history]).fit(start, data, max_steps=steps)
    rows = [row for row in history.rows if row["span"] == "steps"]
    return _Run(rows, read_weights(end.params, net.layers, net.layout))


def _compare(first: str, expected: _Run, name: str, found: _Run, tolerance: float) -> None:
    for one, other in zip(expected.metrics, found.metrics, strict=True):
        for metric, value in one.items():
            if not _close(value, other[metric], tolerance):
                raise AssertionError(
                    f"step {one['step']}: {metric!r} is {value} with {first} and {other[metric]} "
                    f"with {name}"
                )
    for layer, parts in expected.weights.items():
        for part, value in parts.items():
            other = found.weights[layer][part]
            if not _close(value, other, tolerance):
                raise AssertionError(
                    f"after {len(found.metrics)} steps the {part} of {layer!r} differs by up to "
                    f"{np.max(np.abs(value - other)):.2g} between {first} and {name}"
                )


def _close(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, str):
        return one == other
    return np.allclose(one, other, rtol=0, atol=tolerance, equal_nan=True)
