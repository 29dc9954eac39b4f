"""Base classes of the ready-made Experiments, and checks of their batches."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self, TypeAlias, cast

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice import _tree
from solstice._arguments import function_or_none, whole
from solstice._batch import describe_batch, is_traced, num_rows
from solstice._callback import Callback
from solstice._errors import DataError
from solstice._experiment import Experiment
from solstice._hints import mask_hint, third_part_hint
from solstice._metrics import Metrics
from solstice._replace import replace
from solstice._train import test, train
from solstice._trainer import Trainer
from solstice._types import Batch
from solstice.compat import OptState, Params, State
from solstice.data._masked import Masked
from solstice.experiments._learner import Forward, Learner
from solstice.metrics import WithLoss

LossFunction: TypeAlias = Callable[[Any, Any], Array]
"""`losses = loss(outputs, targets)`: shape [n, ...], not averaged."""

MetricsFunction: TypeAlias = Callable[[Any, Any, Array], Metrics]
"""`metrics(outputs, targets, mask)`: the Metrics of one batch; the mask is boolean."""


@dataclass(frozen=True)
class Options:
    """`Options(loss, metrics, micro_batches)`: the options that all one-model Experiments share.

    Attributes:
        loss: replaces the default loss; None keeps the default.
        metrics: replaces the default metrics; None keeps the default.
        micro_batches: number of parts into which a batch is cut for training, 1 or more.
    """

    loss: LossFunction | None = None
    metrics: MetricsFunction | None = None
    micro_batches: int = 1

    def __post_init__(self) -> None:
        function_or_none("loss", self.loss, "loss=optax.huber_loss")
        function_or_none("metrics", self.metrics, "metrics=lambda outputs, targets, mask: ...")
        micro_batches = whole("micro_batches", self.micro_batches)
        object.__setattr__(self, "micro_batches", micro_batches)


class ReadyMade(Experiment):
    """An Experiment with the methods `train`, `test` and `predict`."""

    def train(
        self,
        train_ds: Any,
        val_ds: Any = None,
        *,
        num_epochs: int | None = None,
        max_steps: int | None = None,
        batch_size: int | None = None,
        callbacks: Iterable[Callback] | None = None,
        resume: str | PathLike[str] | None = None,
    ) -> Self:
        """`exp = exp.train(train_ds, val_ds, num_epochs=5)`: a trained copy.

        The arguments are those of `solstice.train`. An Experiment never changes in place, so
        assign the result.
        """
        return train(
            self,
            train_ds=train_ds,
            val_ds=val_ds,
            num_epochs=num_epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            callbacks=callbacks,
            resume=resume,
        )

    def test(
        self,
        test_ds: Any,
        *,
        batch_size: int | None = None,
        callbacks: Iterable[Callback] | None = None,
    ) -> dict[str, Any]:
        """`exp.test(test_ds)["loss"]`: metrics by name, with the arguments of `solstice.test`."""
        return test(self, test_ds, batch_size=batch_size, callbacks=callbacks)

    def predict(self, ds: Any, *, batch_size: int | None = None) -> Any:
        """`predictions = exp.predict(x, batch_size=256)`: run `predict_step` over a data set.

        Args:
            ds: features, or a data set of batches; targets in the batches are ignored. For a model
                with two inputs, give `(a, b)` or `((a, b), y)`. Masked examples are predicted too,
                so row i is example i.
            batch_size: examples per batch, for a data set given as arrays.

        Returns:
            NumPy arrays with one row per example. If they do not fit in memory, use
            `Trainer.predict`, which yields one batch at a time.

        Raises:
            DataError: the model has not been initialised, or the features have other shapes.
        """
        outputs = Trainer().predict(self, ds, batch_size=batch_size)
        return _tree.map(lambda *parts: np.concatenate(parts), *outputs)


class OneModelExperiment(ReadyMade):
    """An Experiment that trains one model on pairs of inputs and targets.

    A subclass splits a batch (`_parts`), checks targets and model outputs (`_check_targets`,
    `_check_values`, `_outputs`), and defines the defaults (`_usual_loss`, `_usual_metrics`).
    """

    learner: eqx.AbstractVar[Learner]
    options: eqx.AbstractVar[Options]

    @property
    def params(self) -> Params:
        """The model's params; None before initialisation."""
        return self.learner.params

    @property
    def state(self) -> State:
        """The model's state, such as batch statistics; None before initialisation."""
        return self.learner.state

    @property
    def opt_state(self) -> OptState:
        """The optimiser's state; None before initialisation."""
        return self.learner.opt_state

    @property
    def step(self) -> Array:
        """Training steps taken, an int32 scalar."""
        return self.learner.step

    def with_params(self, params: Params) -> Self:
        """`exp = exp.with_params(pretrained)`: start from these weights.

        Raises:
            ValueError: as `Learner.with_params`.
        """
        return replace(self, learner=self.learner.with_params(params))

    def __call__(self, x: Any) -> Any:
        """`outputs = exp(x)`: the model's outputs, with the weights for evaluation.

        Raises:
            DataError: the model has not been initialised, or `x` has other shapes.
        """
        return self._outputs(self.learner(x), x, None)

    def _features(self, batch: Batch) -> Any:
        """The inputs of a batch for prediction, without targets.

        A tuple is ambiguous: two inputs, or inputs and targets. The number of inputs at
        initialisation decides.
        """
        (whole, _), first = unmasked(batch), features_of(batch)
        count = len(self.learner.inputs or ())
        is_all = len(_tree.leaves(whole)) == count != len(_tree.leaves(first))
        return whole if is_all else first

    def setup(self, batch: Batch) -> Self:
        """Initialises the model from the shapes of the first batch; a second call does nothing."""
        if self.learner.inputs is not None:
            return self
        x, y, _ = self._parts(batch)
        self._check_pair(x, y)
        return replace(self, learner=self.learner.setup(x))

    def check_batch(self, batch: Batch) -> None:
        """Raises a DataError if target values are invalid, such as a label out of range.

        It runs on the host, since a compiled step cannot raise.
        """
        x, y, mask = self._parts(batch)
        self._check_pair(x, y)
        _check_mask(mask, y)
        targets = np.asarray(y)
        self._check_values(targets if mask is None else targets[_as_rows(mask, targets)])

    def train_step(self, batch: Batch) -> tuple[Self, Metrics]:
        """`exp, metrics = exp.train_step(batch)`: one update."""
        self = self._ready(batch)
        learner, metrics = self.learner.update(
            self._objective, batch, micro_batches=self.options.micro_batches
        )
        return replace(self, learner=learner), metrics

    def eval_step(self, batch: Batch) -> tuple[Self, Metrics]:
        """`exp, metrics = exp.eval_step(batch)`: metrics with the weights for evaluation."""
        self = self._ready(batch)
        return self, self.learner.evaluate(self._objective, batch)

    def _ready(self, batch: Batch) -> Self:
        """The initialised Experiment, after all checks of the batch."""
        self = self.setup(batch)
        x, y, mask = self._parts(batch)
        num_rows(x)
        self.learner.check_inputs(x)
        self._check_pair(x, y)
        _check_mask(mask, y)
        if not is_traced(batch):
            self.check_batch(batch)
        return self

    def _check_pair(self, x: Any, y: Any) -> None:
        """Raises a DataError if targets differ from the inputs in length, or are invalid."""
        length = shape_of(y)[:1]
        if length and shape_of(x)[:1] != length and num_rows(x) != length[0]:
            raise DataError(
                f"features and targets must have the same number of examples on axis 0; there are "
                f"{num_rows(x)} in the features, {describe_batch(x)}, and {length[0]} in the "
                f"targets, {describe_batch(y)}"
            )
        self._check_targets(y)

    def _objective(self, model: Forward, batch: Batch) -> tuple[Array, Array | None, Metrics]:
        x, y, mask = self._parts(batch)
        outputs = self._outputs(model(x), x, y)
        if mask is not None:
            # Masked targets may be NaN, and NaN times a weight of 0 would still be NaN.
            y = jnp.where(spread(mask, y), y, jnp.zeros_like(y))
        return self._measured(outputs, y, mask)

    def _measured(self, outputs: Any, y: Any, mask: Any) -> tuple[Array, Array | None, Metrics]:
        """The losses, weights (or None) and metrics of one batch."""
        losses = self._losses(outputs, y)
        weights = self._weights(y, mask, losses)
        if weights is not None and weights.ndim > losses.ndim:
            raise DataError(
                f"the loss has one number for each example, but the mask one for each element: "
                f"{describe_batch(mask)}. Give a mask of shape [n], or a loss without a mean"
            )
        counts = jnp.ones(y.shape[:1], bool) if mask is None else mask
        metrics = (self.options.metrics or self._usual_metrics)(outputs, y, counts)
        return losses, weights, WithLoss(metrics, losses, weights)

    def _losses(self, outputs: Any, y: Any) -> Array:
        losses = (self.options.loss or self._usual_loss)(outputs, y)
        if shape_of(losses)[:1] != y.shape[:1]:
            raise ValueError(
                f"the loss must be one number for each of the {y.shape[0]} examples, of shape "
                f"[n] or [n, ...], without a mean; it is {describe_batch(losses)}"
            )
        return losses

    def _weights(self, y: Any, mask: Any, losses: Array) -> Array | None:
        """The weight of each loss; None if all count the same."""
        del y
        return None if mask is None else spread(mask, losses)

    def _parts(self, batch: Batch) -> tuple[Any, Any, Any]:
        """Splits a batch into inputs, targets and mask; the mask is None without `Masked`."""
        batch, mask = unmasked(batch)
        x, y = _pair(batch)
        return x, y, mask

    @abstractmethod
    def _check_targets(self, y: Any) -> None:
        """Raises a DataError if the targets' shape or dtype is wrong; they may be traced."""

    @abstractmethod
    def _check_values(self, y: Any) -> None:
        """Raises a DataError if values of the targets, a NumPy array, are invalid."""

    @abstractmethod
    def _outputs(self, outputs: Any, x: Any, y: Any) -> Any:
        """The model's outputs after a check of their shape; `y` is None in prediction."""

    @abstractmethod
    def _usual_loss(self, outputs: Any, y: Any) -> Array:
        """The loss of each example."""

    def _usual_metrics(self, outputs: Any, y: Any, mask: Array) -> Metrics:
        """The default metrics of a batch; an Experiment that overrides `_measured` has none."""
        raise NotImplementedError


def features_of(batch: Batch) -> Any:
    """The features of a batch: the batch itself, or its first entry if it is a tuple or list."""
    batch, _ = unmasked(batch)
    return cast("Any", batch[0]) if isinstance(batch, tuple | list) else batch


def unmasked(batch: Batch) -> tuple[Batch, Any]:
    """The batch inside a `Masked` and its mask; any other batch and None.

    Raises:
        DataError: the mask is not boolean, or has another length than the batch.
    """
    if not isinstance(batch, Masked):
        return batch, None
    mask, size = batch.mask, num_rows(batch.batch)
    if not jnp.issubdtype(getattr(mask, "dtype", object), jnp.bool_) or mask.ndim < 1:
        raise DataError(
            f"the mask of a batch must be an array of booleans, one for each of its {size} "
            f"examples; it is {describe_batch(mask)}{mask_hint(mask)}"
        )
    if mask.shape[0] != size:
        raise DataError(
            f"the mask of a batch must have one entry for each of its {size} examples; it is "
            f"{describe_batch(mask)}"
        )
    return batch.batch, mask


def _check_mask(mask: Any, y: Any) -> None:
    if mask is not None and mask.shape != y.shape[: mask.ndim]:
        raise DataError(
            f"the mask of targets of shape {list(y.shape)} must be of that shape, or "
            f"[{y.shape[0]}]; it is {describe_batch(mask)}{mask_hint(mask)}"
        )


def check_floating(x: Any) -> None:
    """Raises a DataError unless the features are a floating-point array of shape [n, ...]."""
    if getattr(x, "ndim", 0) < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        hint = ". Convert pixels with `(x / 255).astype('float32')`"
        if getattr(x, "ndim", 0) == 1:
            hint = ". Write `x[:, None]` for one number per example"
        raise DataError(
            f"expected features of floating point, of shape [n, ...]; they are "
            f"{describe_batch(x)}{hint}"
        )


def check_no_nan(x: Any) -> None:
    """Raises a DataError if the features, a NumPy array, contain NaN."""
    bad = np.isnan(x).sum()
    if bad:
        raise DataError(f"{bad} of {x.size} features are NaN: leave those examples out")


def shape_of(outputs: Any) -> tuple[int, ...]:
    """The shape of an array; () for any other object, such as a tuple of arrays."""
    return getattr(outputs, "shape", ())


def without_last_axis(outputs: Any, size: int) -> Any:
    """Outputs of shape [n, 1] as [n]; others unchanged."""
    return outputs[:, 0] if shape_of(outputs) == (size, 1) else outputs


def spread(weights: Any, like: Any) -> Any:
    """Weights with trailing axes of length 1, so that they broadcast against `like`."""
    return weights.reshape(*weights.shape, *[1] * (like.ndim - weights.ndim))


def _as_rows(mask: Any, like: Any) -> Any:
    return np.broadcast_to(spread(np.asarray(mask), like), like.shape)


def _holds_masked(batch: Any) -> bool:
    return isinstance(batch, tuple | list) and any(
        isinstance(part, Masked) for part in cast("tuple[Any, ...]", batch)
    )


def _pair(batch: Batch) -> tuple[Any, Any]:
    if isinstance(batch, tuple | list) and len(cast("tuple[Any, ...]", batch)) == 2:
        x, y = cast("tuple[Any, Any]", batch)
        if not _holds_masked(batch):
            return x, y
    hint = ""
    if isinstance(batch, Mapping):
        names = [*cast("Mapping[str, Any]", batch), "label", "label"][:2]
        hint = f". Map each batch to a pair: `(batch[{names[0]!r}], batch[{names[1]!r}])`"
    elif isinstance(batch, Masked) or _holds_masked(batch):
        hint = ". A mask goes around all of it, once: `Masked((features, labels), mask)`"
    elif isinstance(batch, tuple | list) and len(cast("tuple[Any, ...]", batch)) == 3:
        hint = third_part_hint(cast("tuple[Any, ...]", batch)[2])
    raise DataError(
        f"a batch must be a pair (features, labels); it is {describe_batch(batch)}{hint}"
    )
