"""The nets that the suite for models orders."""

# Trees of anything go through here: what a checker can tell of them is not worth its words.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

import functools
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from solstice import _tree
from solstice.compat import Model, as_model
from solstice.testing._rebuilt import Rebuilt

HIDDEN, CLASSES, FEATURES, BATCH = 16, 3, 6, 8
KEY = jax.random.PRNGKey(0)
_EVALUATED = {
    "batch_norm": "test_statistics_are_used_in_evaluation",
    "dropout": "test_dropout_sleeps_in_evaluation",
}
"""By feature, the check without which a net that has it is not ordered for other checks."""


def inputs(seed: int = 0) -> Any:
    """A batch, in the memory of the host, where it could be changed in place."""
    return np.random.default_rng(seed).normal(size=(BATCH, FEATURES)).astype(np.float32)


@dataclass(frozen=True)
class Net:
    """A net that was ordered, with the values that its `init` gave."""

    model: Model
    params: Any
    state: Any
    x: Any

    def train(self, x: Any = None, *, state: Any = None, key: Any = KEY) -> tuple[Any, Any]:
        """`outputs, state = net.train()`: `forward` in training, of the batch or another."""
        state = self.state if state is None else state
        return self.model.forward(self.params, state, self._or_mine(x), train=True, key=key)

    def evaluate(self, x: Any = None, *, state: Any = None, params: Any = None) -> Any:
        """`outputs = net.evaluate()`: what `forward` gives in evaluation, without a key."""
        state = self.state if state is None else state
        params = self.params if params is None else params
        return self.model.forward(params, state, self._or_mine(x), train=False)[0]

    def _or_mine(self, x: Any) -> Any:
        return self.x if x is None else x


class NetSuite(Rebuilt, is_suite=True):
    """Builds nets, plain ones and those with all that a framework has."""

    _rests = ("test_init_needs_shapes_alone",)

    @abstractmethod
    def build(self, *, hidden: int, classes: int, batch_norm: bool, dropout: float) -> Any:
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
        """The order of the net that has batch norm and dropout, less what cannot be evaluated."""
        order = {"batch_norm": True, "dropout": dropout}
        return {name: order[name] for name in order if _EVALUATED[name] not in self._declared}

    def orders(self) -> list[dict[str, Any]]:
        """The orders of the plain net and of the one with most in it."""
        return [{}, self.most()] if self.most() else [{}]


def on_each_net(check: Callable[[Any, Net], None]) -> Callable[[Any], None]:
    """Marks a check of the plain net and of the one with batch norm and dropout."""

    @functools.wraps(check)
    def over(self: Any) -> None:
        for order in self.orders():
            _with_order(check, self, order)

    del over.__dict__["__wrapped__"]  # or pytest would ask for a fixture `net`
    return over


def on_the_most(check: Callable[[Any, Net], None]) -> Callable[[Any], None]:
    """Marks a check, dear to run, of the net with batch norm and dropout alone."""

    @functools.wraps(check)
    def over(self: Any) -> None:
        _with_order(check, self, self.most())

    del over.__dict__["__wrapped__"]
    return over


def _with_order(check: Callable[[Any, Net], None], suite: Any, order: dict[str, Any]) -> None:
    try:
        check(suite, suite.order(**order))
    except Exception as error:
        words = ", ".join(f"{name}={value}" for name, value in order.items()) or "a plain net"
        error.add_note(f"The net that was ordered: {words}")
        raise
