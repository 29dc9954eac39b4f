"""What the ready-made Experiments of one model share."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self, TypeAlias, cast

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from solstice import _tree
from solstice._arguments import function_or_none, whole
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
from solstice.data._source import describe_batch
from solstice.experiments._learner import Forward, Learner
from solstice.metrics import WithLoss

LossFunction: TypeAlias = Callable[[Any, Any], Array]
"""`losses = loss(outputs, targets)`: of shape [n, ...], not averaged."""

MetricsFunction: TypeAlias = Callable[[Any, Any, Array], Metrics]
"""`metrics(outputs, targets, mask)`: of one batch."""


@dataclass(frozen=True)
class Options:
    """What all ready-made Experiments of one model can be told.

    Attributes:
        loss: in place of the usual loss; None for that.
        metrics: in place of the usual metrics; None for those.
        micro_batches: how many parts a batch is trained in.
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
    """An Experiment that trains and tests itself."""

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
            resume=resume,
        )

    def test(
        self,
        test_ds: Any,
        *,
        batch_size: int | None = None,
        callbacks: Iterable[Callback] | None = None,
    ) -> dict[str, Any]:
        """`exp.test(test_ds)["loss"]`: the arguments are those of `solstice.test`."""
        return test(self, test_ds, batch_size=batch_size, callbacks=callbacks)

    def predict(self, ds: Any, *, batch_size: int | None = None) -> Any:
        """`predictions = exp.predict(x, batch_size=256)`: `predict_step` over a data set.

        Args:
            ds: features, or a data set of batches; targets beside them are not looked at. Those of
                a network of two inputs are `(a, b)`, or `((a, b), y)`. What is masked is predicted
                too, so that row i is example i.
            batch_size: examples in a batch, for a data set given as arrays.

        Returns:
            NumPy arrays, one row for each example. `Trainer.predict` gives batch by batch what is
            too large to hold.

        Raises:
            DataError: the experiment has seen no batch yet, or the features have other shapes.
        """
        outputs = Trainer().predict(self, ds, batch_size=batch_size)
        return _tree.map(lambda *parts: np.concatenate(parts), *outputs)


class OneModelExperiment(ReadyMade):
    """An Experiment that trains one model: inputs, targets, a loss, and metrics.

    A kind of Experiment says what its batches are (`_parts`), what their targets and the model's
    outputs must be (`_check_targets`, `_check_values`, `_outputs`), and what is usual
    (`_usual_loss`, `_usual_metrics`).
    """

    learner: eqx.AbstractVar[Learner]
    options: eqx.AbstractVar[Options]

    @property
    def params(self) -> Params:
        """The model's params; None before the first batch is known."""
        return self.learner.params

    @property
    def state(self) -> State:
        """The model's state."""
        return self.learner.state

    @property
    def opt_state(self) -> OptState:
        """The optimiser's state."""
        return self.learner.opt_state

    @property
    def step(self) -> Array:
        """Training steps taken, an int32 scalar."""
        return self.learner.step

    def with_params(self, params: Params) -> Self:
        """`exp = exp.with_params(pretrained)`: see `Learner.with_params`."""
        return replace(self, learner=self.learner.with_params(params))

    def __call__(self, x: Any) -> Any:
        """`outputs = exp(x)`: the model's outputs, with the weights for evaluation.

        Raises:
            DataError: the experiment has seen no batch yet, or `x` has other shapes.
        """
        return self._outputs(self.learner(x), x, None)

    def _features(self, batch: Batch) -> Any:
        """What to predict from: all inputs of a model of several, or as `features_of` has it."""
        (whole, _), first = unmasked(batch), features_of(batch)
        count = len(self.learner.inputs or ())
        is_all = len(_tree.leaves(whole)) == count != len(_tree.leaves(first))
        return whole if is_all else first

    def setup(self, batch: Batch) -> Self:
        """Initialises the model with the first batch, unless it is already."""
        if self.learner.inputs is not None:
            return self
        x, y, _ = self._parts(batch)
        self._check_pair(x, y)
        return replace(self, learner=self.learner.setup(x))

    def check_batch(self, batch: Batch) -> None:
        """Refuses targets with values that cannot be, before they train anything."""
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
        """`exp, metrics = exp.eval_step(batch)`: measure, with the weights for evaluation."""
        self = self._ready(batch)
        return self, self.learner.evaluate(self._objective, batch)

    def _ready(self, batch: Batch) -> Self:
        """Set up, and with a batch that fits: what a step may begin with."""
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
        """Raises a DataError on targets that do not fit, in length or by themselves."""
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
            y = jnp.where(spread(mask, y), y, jnp.zeros_like(y))  # what is masked may be NaN
        return self._measured(outputs, y, mask)

    def _measured(self, outputs: Any, y: Any, mask: Any) -> tuple[Array, Array | None, Metrics]:
        """`losses, weights, metrics` of one batch."""
        losses = self._losses(outputs, y)
        weights = self._weights(y, mask, losses)
        if weights is not None and weights.ndim > losses.ndim:
            raise DataError(
                f"the loss is one number for each example, and the mask one for each element: "
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
        """What each loss counts."""
        del y
        return None if mask is None else spread(mask, losses)

    def _parts(self, batch: Batch) -> tuple[Any, Any, Any]:
        """`x, targets, mask` of a batch; the mask is None if there is none."""
        batch, mask = unmasked(batch)
        x, y = _pair(batch)
        return x, y, mask

    @abstractmethod
    def _check_targets(self, y: Any) -> None:
        """Raises a DataError on targets of a wrong shape or dtype."""

    @abstractmethod
    def _check_values(self, y: Any) -> None:
        """Raises a DataError on targets, NumPy arrays, with values that cannot be."""

    @abstractmethod
    def _outputs(self, outputs: Any, x: Any, y: Any) -> Any:
        """The model's outputs, or a DataError; the targets are None where there are none."""

    @abstractmethod
    def _usual_loss(self, outputs: Any, y: Any) -> Array:
        """The loss of each example."""

    def _usual_metrics(self, outputs: Any, y: Any, mask: Array) -> Metrics:
        """The metrics of a batch."""
        raise NotImplementedError


def features_of(batch: Batch) -> Any:
    """What to predict from: a batch without targets, or the first of a pair."""
    batch, _ = unmasked(batch)
    return cast("Any", batch[0]) if isinstance(batch, tuple | list) else batch


def unmasked(batch: Batch) -> tuple[Batch, Any]:
    """The batch within, and its mask or None."""
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


def num_rows(x: Any) -> int:
    """How many examples there are: the length of the first array that has an axis.

    Raises:
        DataError: there are none.
    """
    size = next((np.shape(leaf)[0] for leaf in _tree.leaves(x) if np.ndim(leaf)), 0)
    if size == 0:
        raise DataError(
            f"a batch must have one example or more on axis 0; there is none in "
            f"{describe_batch(x)}. Leave empty batches out"
        )
    return size


def check_floating(x: Any) -> None:
    """Raises a DataError on features that are no array of floating point."""
    if getattr(x, "ndim", 0) < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        hint = ". Pixels become such by `(x / 255).astype('float32')`"
        if getattr(x, "ndim", 0) == 1:
            hint = ". Write `x[:, None]` for one number an example"
        raise DataError(
            f"expected features of floating point, of shape [n, ...]; they are "
            f"{describe_batch(x)}{hint}"
        )


def check_no_nan(x: Any) -> None:
    """Raises a DataError on features, a NumPy array, that are NaN."""
    bad = np.isnan(x).sum()
    if bad:
        raise DataError(f"{bad} of {x.size} features are NaN: leave those examples out")


def is_traced(batch: Batch) -> bool:
    """Whether the batch has no values yet, since a step is being compiled."""
    return any(isinstance(leaf, Tracer) for leaf in _tree.leaves(batch))


def shape_of(outputs: Any) -> tuple[int, ...]:
    """The shape of an array; () of what is none, such as a tuple of arrays."""
    return getattr(outputs, "shape", ())


def without_last_axis(outputs: Any, size: int) -> Any:
    """Outputs of shape [n, 1] as [n]."""
    return outputs[:, 0] if shape_of(outputs) == (size, 1) else outputs


def spread(weights: Any, like: Any) -> Any:
    """Weights with axes of 1 behind, so that they broadcast against an array."""
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
