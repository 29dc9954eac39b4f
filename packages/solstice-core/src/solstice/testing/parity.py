"""`solstice.testing.parity`: the same net in several frameworks, trained to the same numbers.

```python
from solstice.testing import parity

parity.assert_parity(
    {
        "linen": parity.Net(linen_mlp, parity.FLAX, {"hidden": ("dense", "Dense_0"), ...}),
        "haiku": parity.Net(haiku_mlp, parity.HAIKU, {"hidden": ("dense", "mlp/linear"), ...}),
    },
    optax.adam(1e-3),
    batches,
)
```

The weights of the first are moved to the others; then each is trained by the same Experiment, and
their metrics are compared step by step. A framework that is not here is a `Layout` away.
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
from solstice.testing._layouts import (
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
    """`Net(model, parity.FLAX, {"hidden": ("dense", "Dense_0")})`: a net, and where its layers are.

    Attributes:
        model: a `solstice.compat.Model`, or a model of any framework that has an adapter.
        layout: how its framework keeps its layers.
        layers: by a name that all nets share, the kind of a layer and its path in the Params.
    """

    model: Any
    layout: Layout
    layers: Mapping[str, tuple[str, str]]


def assert_parity(
    nets: Mapping[str, Net],
    optimizer: Any,
    batches: Iterable[Batch],
    *,
    experiment: MakeExperiment = ClassificationExperiment,
    steps: int = 50,
    tolerance: float = 1e-5,
) -> None:
    """`assert_parity({"linen": one, "haiku": other}, optax.adam(1e-3), batches)`.

    What is random must be left out of the nets (Dropout), and so must weights whose gradient is
    zero but for rounding (a bias before BatchNorm), which Adam would blow up. Running statistics
    are not moved and not compared: frameworks begin and correct them in different ways, and
    training does not read them.

    Args:
        nets: two or more by name. The first gives the weights to begin with.
        optimizer: a `solstice.compat.Optimizer`, or an optimiser that has an adapter.
        batches: the data; it is gone through as often as the steps need.
        experiment: from model and optimizer, an Experiment with `params`, which its `setup` makes,
            and a method `with_params`, as the ready-made ones have.
        steps: how many to train.
        tolerance: by how much any metric of any step, and any weight after them, may differ.

    Raises:
        AssertionError: numbers differ. It names the first step and metric, or the layer.
        KeyError, ValueError: the layers are not as a `Net` says, or not the same in all.
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
    """What training gave: the metrics of each step, and the weights after the last."""

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
