"""Single-label classification with any model and any optimiser."""

from collections.abc import Iterable, Mapping
from typing import Any, Self, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from solstice import _tree
from solstice._callback import Callback
from solstice._data import describe_batch
from solstice._errors import DataError
from solstice._experiment import Experiment
from solstice._metrics import at_least_float32
from solstice._replace import replace
from solstice._train import test, train
from solstice._types import Batch
from solstice.compat import Model, Optimizer, OptState, Params, State, as_model, as_optimizer
from solstice.metrics import ClassificationMetrics


class ClassificationExperiment(Experiment):
    """`ClassificationExperiment(flax_module, optax.adam(3e-4), num_classes=10)`: a classifier.

    ```python
    exp = solstice.ClassificationExperiment(model, optax.adam(3e-4), num_classes=10)
    exp = exp.train(train_ds, num_epochs=5)
    exp.test(test_ds)["accuracy"]
    ```

    A batch is a pair of features, an array or a pytree of arrays with the example on axis 0, and
    integer labels of shape [n] in [0, num_classes). The model gives logits of shape
    [n, num_classes]. The loss is the mean softmax cross-entropy.

    Args:
        model: a `solstice.compat.Model`, or a model of any framework that has an adapter.
        optimizer: a `solstice.compat.Optimizer`, or an optimiser that has an adapter.
        num_classes: number of classes, 2 or more.
        seed: an integer, or a PRNG key (typed or legacy), for the initial values and what is
            random in training.
        sample_input: features of a batch of any size, for the model to be initialised with. Left
            out, the first batch is taken.

    Attributes:
        params, state, opt_state: what the model and the optimiser hold; None before the first
            batch is known.
        step: training steps taken, an int32 scalar.

    Raises:
        ValueError: `num_classes` is below 2.
        TypeError, solstice.compat.AdapterError: there is no adapter for the model or optimiser; or
            the model has params that are no floating-point arrays.
        DataError: in a step, labels are not integers of shape [n] in [0, num_classes), features
            differ in shape from those the model was initialised with, or the model gives no
            logits of shape [n, num_classes].
    """

    model: Model
    optimizer: Optimizer
    params: Params
    state: State
    opt_state: OptState
    key: Array
    step: Array
    num_classes: int = eqx.field(static=True)
    features: tuple[str, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        num_classes: int = 10,
        seed: int | Array = 0,
        *,
        sample_input: Any = None,
    ) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes must be 2 or more; it is {num_classes}")
        self.model = as_model(model)
        self.optimizer = as_optimizer(optimizer)
        self.num_classes = num_classes
        self.params = self.state = self.opt_state = self.features = None
        self.key = jax.random.key(seed) if isinstance(seed, int | np.integer) else seed
        self.step = jnp.zeros((), jnp.int32)
        if sample_input is not None:
            ready = self._initialised(sample_input)
            self.params, self.state, self.opt_state = ready.params, ready.state, ready.opt_state
            self.key, self.features = ready.key, ready.features

    def train(
        self,
        train_ds: Any,
        val_ds: Any = None,
        *,
        num_epochs: int | None = None,
        max_steps: int | None = None,
        batch_size: int | None = None,
        callbacks: Iterable[Callback] | None = None,
    ) -> Self:
        """`exp = exp.train(train_ds, val_ds, num_epochs=5)`: a trained copy.

        The arguments are those of `solstice.train`. An Experiment never changes in place: keep
        what comes back.
        """
        return train(
            self,
            train_ds=train_ds,
            val_ds=val_ds,
            num_epochs=num_epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            callbacks=callbacks,
        )

    def test(
        self,
        test_ds: Any,
        *,
        batch_size: int | None = None,
        callbacks: Iterable[Callback] | None = None,
    ) -> dict[str, Any]:
        """`exp.test(test_ds)["accuracy"]`: the arguments are those of `solstice.test`."""
        return test(self, test_ds, batch_size=batch_size, callbacks=callbacks)

    def __call__(self, x: Any) -> Array:
        """`logits = exp(x)`: float logits of shape [n, num_classes], in evaluation mode.

        Raises:
            DataError: the experiment has seen no batch yet, or `x` has other shapes.
        """
        if self.features is None:
            raise DataError(
                "this ClassificationExperiment has no values yet: train it first, or give "
                "`sample_input=` when you make it"
            )
        self._check_features(x)
        params = self.optimizer.eval_params(self.opt_state, self.params)
        logits, _ = self.model.forward(params, self.state, x, train=False)
        return self._checked_logits(logits, x)

    def setup(self, batch: Batch) -> Self:
        """Initialises the model with the features of the first batch, unless it is already."""
        if self.features is not None:
            return self
        x, y = _pair(batch)
        self._check_labels(y)
        return self._initialised(x)

    def check_batch(self, batch: Batch) -> None:
        """Refuses labels out of range, before they train anything."""
        _, y = _pair(batch)
        self._check_labels(y)
        labels = np.asarray(y)
        if labels.size and (labels.min() < 0 or labels.max() >= self.num_classes):
            bad = labels[(labels < 0) | (labels >= self.num_classes)]
            more = (
                f"Give num_classes={int(labels.max()) + 1}, or mend" if bad.min() >= 0 else "Mend"
            )
            raise DataError(
                f"{bad.size} of {labels.size} labels are outside [0, {self.num_classes}), such as "
                f"{bad[0]}. {more} the labels"
            )

    def train_step(self, batch: Batch) -> tuple[Self, ClassificationMetrics]:
        """`exp, metrics = exp.train_step((x, y))`: one update."""
        self = self._ready(batch)
        x, y = _pair(batch)
        key = jax.random.fold_in(self.key, self.step)

        def loss_fn(params: Params) -> tuple[Array, tuple[Array, State]]:
            logits, state = self.model.forward(params, self.state, x, train=True, key=key)
            logits = self._checked_logits(logits, x)
            return _cross_entropy(logits, y), (logits, state)

        (loss, (logits, state)), grads = jax.value_and_grad(loss_fn, has_aux=True)(self.params)
        params, opt_state = self.optimizer.step(
            grads, self.opt_state, self.params, value=loss, value_fn=lambda p: loss_fn(p)[0]
        )
        metrics = ClassificationMetrics(logits, y, loss, self.num_classes)
        new = replace(self, params=params, state=state, opt_state=opt_state, step=self.step + 1)
        return new, metrics

    def eval_step(self, batch: Batch) -> tuple[Self, ClassificationMetrics]:
        """`exp, metrics = exp.eval_step((x, y))`: measure, with the weights for evaluation."""
        self = self._ready(batch)
        x, y = _pair(batch)
        logits = self(x)
        return self, ClassificationMetrics(logits, y, _cross_entropy(logits, y), self.num_classes)

    def predict_step(self, batch: Batch) -> Array:
        """`probabilities = exp.predict_step(x)`: float, of shape [n, num_classes].

        The batch is `x` alone, or a tuple or list of `x` and labels, which are not looked at.
        """
        x = cast("Any", batch[0]) if isinstance(batch, tuple | list) else batch
        return jax.nn.softmax(self(x))

    def _ready(self, batch: Batch) -> Self:
        """Set up, and with a batch that fits: what a step may begin with."""
        self = self.setup(batch)
        x, y = _pair(batch)
        self._check_features(x)
        self._check_labels(y)
        if not isinstance(y, Tracer):
            self.check_batch(batch)
        return self

    def _initialised(self, x: Any) -> Self:
        init_key, key = jax.random.split(self.key)
        params, state = self.model.init(init_key, x)
        _check_params(params)
        return replace(
            self,
            params=params,
            state=state,
            opt_state=self.optimizer.init(params),
            key=key,
            features=_example_shapes(x),
        )

    def _check_features(self, x: Any) -> None:
        if self.features != _example_shapes(x):
            raise DataError(
                f"the model was initialised with features whose examples are "
                f"{', '.join(self.features or ())}; these are {', '.join(_example_shapes(x))}"
            )

    def _check_labels(self, y: Any) -> None:
        hint = ""
        if getattr(y, "ndim", 0) == 2:
            hint = ". One-hot labels become classes by `labels.argmax(axis=-1)`"
        elif hasattr(y, "dtype") and not jnp.issubdtype(y.dtype, jnp.integer):
            hint = ". Make them integers by `labels.astype(int)`"
        if getattr(y, "ndim", 0) != 1 or not jnp.issubdtype(y.dtype, jnp.integer):
            raise DataError(
                f"labels must be integers of shape [n]; they are {describe_batch(y)}{hint}"
            )

    def _checked_logits(self, logits: Any, x: Any) -> Array:
        size = _tree.leaves(x)[0].shape[0]
        if getattr(logits, "shape", None) != (size, self.num_classes):
            raise DataError(
                f"the model must give logits of shape [{size}, {self.num_classes}]; it gave "
                f"{describe_batch(logits)}. Change its last layer, or num_classes"
            )
        return logits


def _check_params(params: Params) -> None:
    for path, leaf in _tree.leaves_by_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"the params of the model have {leaf.dtype} at `{path}`, and no gradient can be "
                f"taken of that. Keep it in the model's state (in Linen a variable of another "
                f"collection, in Haiku `hk.get_state`), or make it a constant"
            )


def _pair(batch: Batch) -> tuple[Any, Any]:
    if isinstance(batch, tuple | list) and len(cast("tuple[Any, ...]", batch)) == 2:
        x, y = cast("tuple[Any, Any]", batch)
        return x, y
    hint = ""
    if isinstance(batch, Mapping):
        names = [*cast("Mapping[str, Any]", batch), "label", "label"][:2]
        hint = f". Map each batch to a pair: `(batch[{names[0]!r}], batch[{names[1]!r}])`"
    raise DataError(
        f"a batch must be a pair (features, labels); it is {describe_batch(batch)}{hint}"
    )


def _example_shapes(x: Any) -> tuple[str, ...]:
    """The shape of one example, leaf by leaf, as text: static, and ready for a message."""
    return tuple(f"{path}{list(np.shape(leaf)[1:])}" for path, leaf in _tree.leaves_by_path(x))


def _cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean of -log softmax(logits)[label], in float32 at least."""
    log_probabilities = jax.nn.log_softmax(at_least_float32(logits))
    picked = jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)
    return -jnp.mean(picked)
