"""The nets of the model suite: a plain one, and one with batch norm and dropout."""

import functools
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array

from solstice import _tree
from solstice._types import AnyArray
from solstice.compat import Model, Params, State, as_model
from solstice.testing._rebuilt import Rebuilt

HIDDEN, CLASSES, FEATURES, BATCH = 16, 3, 6, 8
KEY = jax.random.PRNGKey(0)
_EVALUATED = {
    "batch_norm": "test_statistics_are_used_in_evaluation",
    "dropout": "test_dropout_sleeps_in_evaluation",
}
"""By feature, its main check: if it is unsupported, other checks use a net without the feature."""


def inputs(seed: int = 0) -> np.ndarray[Any, Any]:
    """A batch as a NumPy array, since an adapter could change it in place by mistake."""
    return np.random.default_rng(seed).normal(size=(BATCH, FEATURES)).astype(np.float32)


@dataclass(frozen=True)
class Net:
    """A model with the values of its `init`, and a batch."""

    model: Model
    params: Params
    state: State
    x: AnyArray

    def train(
        self, x: AnyArray | None = None, *, state: State = None, key: Array | None = KEY
    ) -> tuple[Array, State]:
        """`outputs, state = net.train()`: `forward` in training, on its batch or `x`."""
        state = self.state if state is None else state
        return self.model.forward(self.params, state, self._or_mine(x), train=True, key=key)

    def evaluate(
        self, x: AnyArray | None = None, *, state: State = None, params: Params = None
    ) -> Array:
        """`outputs = net.evaluate()`: `forward` in evaluation, without a key."""
        state = self.state if state is None else state
        params = self.params if params is None else params
        return self.model.forward(params, state, self._or_mine(x), train=False)[0]

    def _or_mine(self, x: AnyArray | None) -> AnyArray:
        return self.x if x is None else x


class NetSuite(Rebuilt, is_suite=True):
    """A suite that builds nets: plain ones, and those with all features of the framework."""

    _rests = ("test_init_needs_shapes_alone",)

    @abstractmethod
    def build(self, *, hidden: int, classes: int, batch_norm: bool, dropout: float) -> object:
        """The net: dense(hidden), batch norm if ordered, relu, dropout(rate), dense(classes).

        Its inputs are float32 of the shape [n, 6]. It is called for each net.

        Args:
            hidden: width of the first layer.
            classes: width of the outputs.
            batch_norm: whether there is a BatchNorm, with running statistics and momentum 0.9.
            dropout: its rate; 0 for a net without the layer.

        Returns:
            An object of the framework, which `as_model` wraps, or the adapter itself.
        """

    def found(self, *, batch_norm: bool = False, dropout: float = 0.0) -> Model:
        """The adapter of a net."""
        net = self.build(hidden=HIDDEN, classes=CLASSES, batch_norm=batch_norm, dropout=dropout)
        return as_model(net)

    def _kept(self) -> dict[str, Any]:
        model = self.found(**self.most())
        params, state = _tree.eval_shape(model.init, KEY, inputs())
        return {"model": model, "params": params, "state": state}

    def order(self, **order: Any) -> Net:
        """A net with its first values."""
        self.need("test_it_is_found_and_is_a_model", "test_calls_give_pairs")
        return self.start(self.found(**order))

    def start(self, model: Model) -> Net:
        """A net of this adapter with its first values."""
        x = inputs()
        return Net(model, *model.init(KEY, x), x)

    def most(self, dropout: float = 0.5) -> dict[str, Any]:
        """The arguments of `build` for the net with all features that can be evaluated."""
        order = {"batch_norm": True, "dropout": dropout}
        return {name: order[name] for name in order if _EVALUATED[name] not in self._declared}

    def orders(self) -> list[dict[str, Any]]:
        """The arguments of `build` for the plain net and for that with all features."""
        return [{}, self.most()] if self.most() else [{}]


def on_each_net(check: Callable[[Any, Net], None]) -> Callable[[Any], None]:
    """Decorates a check that runs on the plain net and on that with batch norm and dropout."""
    return _on(NetSuite.orders, check)


def on_the_most(check: Callable[[Any, Net], None]) -> Callable[[Any], None]:
    """Decorates an expensive check that runs only on the net with batch norm and dropout."""
    return _on(lambda suite: [suite.most()], check)


def _on(
    orders: Callable[[NetSuite], list[dict[str, Any]]], check: Callable[[Any, Net], None]
) -> Callable[[Any], None]:
    @functools.wraps(check)
    def over(self: NetSuite) -> None:
        for order in orders(self):
            _with_order(check, self, order)

    del over.__dict__["__wrapped__"]  # otherwise pytest would look for a fixture `net`
    return over


def _with_order(check: Callable[[Any, Net], None], suite: NetSuite, order: dict[str, Any]) -> None:
    try:
        check(suite, suite.order(**order))
    except Exception as error:
        words = ", ".join(f"{name}={value}" for name, value in order.items()) or "a plain net"
        error.add_note(f"The arguments of `build`: {words}")
        raise
