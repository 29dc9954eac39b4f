"""Autoencoders: plain and variational, from two models and an optimiser."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice._arguments import function_or_none, not_negative, whole
from solstice._batch import describe_batch
from solstice._errors import DataError
from solstice._metrics import Metrics, at_least_float32
from solstice._types import Batch
from solstice.compat import Model, Params, State
from solstice.compat._registry import adapt_argument
from solstice.experiments._base import (
    LossFunction,
    MetricsFunction,
    OneModelExperiment,
    Options,
    check_floating,
    check_no_nan,
    features_of,
    shape_of,
    unmasked,
)
from solstice.experiments._keys import one_key
from solstice.experiments._learner import Learner
from solstice.experiments._losses import binary_cross_entropy, squared_error
from solstice.metrics import Mean, MetricsCollection, RegressionMetrics


class _Reconstructing(OneModelExperiment):
    """An Experiment whose targets are its inputs, a single array."""

    def _parts(self, batch: Batch) -> tuple[Any, Any, Any]:
        _, mask = unmasked(batch)
        x = features_of(batch)
        return x, x, mask

    def check_batch(self, batch: Batch) -> None:
        """Raises a DataError if features are invalid.

        Masked examples are checked too, because all examples go through the encoder: NaN in one
        reaches the others through BatchNorm.
        """
        x, _, _ = self._parts(batch)
        self._check_targets(x)
        self._check_values(np.asarray(x))

    def _check_targets(self, y: Any) -> None:
        check_floating(y)

    def _check_values(self, y: Any) -> None:
        check_no_nan(y)

    def _outputs(self, outputs: Any, x: Any, y: Any) -> Any:
        decoded, _ = outputs
        if shape_of(decoded) != x.shape:
            raise DataError(
                f"the decoder must give the shape of the features, {list(x.shape)}; it gave "
                f"{describe_batch(decoded)}. Change its last layer"
            )
        return outputs

    def __call__(self, x: Any) -> Any:
        """`decoded = exp(x)`: encode and decode features, with the weights for evaluation."""
        return super().__call__(x)[0]

    def _part(self, name: str, x: Any) -> Any:
        """The outputs of the encoder or the decoder, with the weights for evaluation."""
        learner = self.learner
        params = learner.eval_params()
        pair: Any = learner.model
        outputs, _ = getattr(pair, name).forward(params[name], learner.state[name], x, train=False)
        return outputs


class AutoencoderExperiment(_Reconstructing):
    """`AutoencoderExperiment(encoder, decoder, optax.adam(1e-3))`: learns to reproduce its inputs.

    ```python
    exp = exp.train(images, batch_size=32, num_epochs=10)
    codes = exp.encode(images)
    images = exp.decode(codes)
    ```

    A batch is a floating-point array of features of shape [n, ...], or a tuple or list with
    features first (labels are ignored), or a `solstice.data.Masked` of either. The encoder returns
    codes of shape [n, ...], and the decoder turns codes into features. The loss is the mean squared
    error. Steps return `RegressionMetrics` with this loss.

    Args:
        encoder, decoder: each a `solstice.compat.Model`, or a model with an adapter. The
            Experiment's params are `{"encoder": ..., "decoder": ...}`.
        loss: `loss(reconstruction, features)`, one number for each example or element.
        metrics: `metrics(reconstruction, features, mask)`, in place of `RegressionMetrics`.
        optimizer, seed, sample_input, micro_batches: as in `ClassificationExperiment`.

    Raises:
        ValueError, TypeError: as `ClassificationExperiment`.
        DataError: in a step, features are not floating point, or are NaN, or the decoder returns
            another shape.
    """

    learner: Learner
    options: Options = eqx.field(static=True)

    def __init__(
        self,
        encoder: Any,
        decoder: Any,
        optimizer: Any,
        *,
        seed: int | Array = 0,
        sample_input: Any = None,
        loss: LossFunction | None = None,
        metrics: MetricsFunction | None = None,
        micro_batches: int = 1,
    ) -> None:
        self.options = Options(loss, metrics, micro_batches)
        model = _Pair(
            adapt_argument("encoder", "model", encoder), adapt_argument("decoder", "model", decoder)
        )
        self.learner = Learner(model, optimizer, seed=seed, sample_input=sample_input)

    def encode(self, x: Any) -> Any:
        """`codes = exp.encode(x)`: the encoder's outputs for features of shape [n, ...]."""
        return self._part("encoder", x)

    def decode(self, z: Any) -> Any:
        """`x = exp.decode(codes)`: the decoder's outputs for codes of shape [n, ...]."""
        return self._part("decoder", z)

    def predict_step(self, batch: Batch) -> Any:
        """`reconstructions = exp.predict_step(x)`: features, encoded and decoded."""
        return self(self._features(batch))

    def _usual_loss(self, outputs: Any, y: Any) -> Array:
        return squared_error(outputs, y)

    def _usual_metrics(self, outputs: Any, y: Any, mask: Array) -> Metrics:
        return RegressionMetrics(outputs, y, mask=mask)

    def _measured(self, outputs: Any, y: Any, mask: Any) -> tuple[Array, Array | None, Metrics]:
        return super()._measured(outputs[0], y, mask)


class VAEExperiment(_Reconstructing):
    """`VAEExperiment(encoder, decoder, optax.adam(1e-3), latent_size=8)`: variational autoencoder.

    ```python
    exp = exp.train(images, batch_size=32, num_epochs=10)
    images = exp.sample(jax.random.key(0), 16)
    ```

    Batches are as for `AutoencoderExperiment`. The encoder returns an array of shape
    [n, 2 * latent_size]: the means of the latents, then the logarithms of their variances. The
    decoder turns latents, [n, latent_size], into the parameters of a distribution over features.

    The loss is the negative evidence lower bound of Kingma and Welling (2014), in nats per example:
    `loss` summed over features, plus `beta` times the divergence of the latents from the standard
    normal distribution. Training draws the latents at random. Evaluation uses their means, so the
    metrics depend neither on chance nor on the batches; the loss is then close to the bound, but
    not a bound. Steps return "loss", "reconstruction" and "divergence".

    Args:
        encoder, decoder: as in `AutoencoderExperiment`.
        latent_size: size of a latent vector.
        beta: weight of the divergence, 0 or more (Higgins et al., 2017).
        loss: `loss(decoded, features)`, -log p of each element. The default is the binary
            cross-entropy of logits, for features in [0, 1].
        activation: function from the decoder's outputs to features, for `decode`, `sample` and
            predictions. The default is the sigmoid with the default loss, and no function with
            another loss.
        optimizer, seed, sample_input, micro_batches: as in `ClassificationExperiment`.

    Raises:
        ValueError, TypeError: as `ClassificationExperiment`.
        DataError: in a step, features are not floating point, or are NaN, or are outside [0, 1]
            with the default loss; or a model returns another shape.
    """

    learner: Learner
    latent_size: int = eqx.field(static=True)
    beta: float = eqx.field(static=True)
    activation: Callable[[Any], Any] | None = eqx.field(static=True)
    options: Options = eqx.field(static=True)

    def __init__(
        self,
        encoder: Any,
        decoder: Any,
        optimizer: Any,
        latent_size: int,
        *,
        beta: float = 1.0,
        seed: int | Array = 0,
        sample_input: Any = None,
        loss: LossFunction | None = None,
        activation: Callable[[Any], Any] | None = None,
        micro_batches: int = 1,
    ) -> None:
        self.latent_size = whole("latent_size", latent_size)
        self.beta = not_negative("beta", beta)
        self.options = Options(loss, None, micro_batches)
        function_or_none("activation", activation, "activation=jax.nn.sigmoid")
        self.activation = jax.nn.sigmoid if loss is None and activation is None else activation
        model = _Pair(
            adapt_argument("encoder", "model", encoder),
            adapt_argument("decoder", "model", decoder),
            self.latent_size,
        )
        self.learner = Learner(model, optimizer, seed=seed, sample_input=sample_input)

    def encode(self, x: Any) -> tuple[Array, Array]:
        """`mean, log_variance = exp.encode(x)`: of the latents, each of shape [n, latent_size]."""
        return _halves(self._part("encoder", x), self.latent_size)

    def decode(self, z: Any) -> Any:
        """`x = exp.decode(z)`: features from latents of shape [n, latent_size]."""
        return self._activated(self._part("decoder", z))

    def sample(self, key: Array, num: int) -> Any:
        """`x = exp.sample(key, 16)`: features decoded from 16 latents drawn at random.

        Raises:
            ValueError: `num` is below 1.
            DataError: the models have not been initialised.
        """
        shape = whole("num", num), self.latent_size
        return self.decode(jax.random.normal(one_key("key", key), shape))

    def predict_step(self, batch: Batch) -> Any:
        """`reconstructions = exp.predict_step(x)`: decoded from the means of the latents."""
        return self._activated(self(self._features(batch)))

    def _activated(self, decoded: Any) -> Any:
        return decoded if self.activation is None else self.activation(decoded)

    def _check_values(self, y: Any) -> None:
        super()._check_values(y)
        if self.options.loss is None and y.size and (y.min() < 0 or y.max() > 1):
            raise DataError(
                f"features must be in [0, 1] for the default loss; they are in [{y.min()}, "
                f"{y.max()}]. Scale them, or give another `loss`"
            )

    def _usual_loss(self, outputs: Any, y: Any) -> Array:
        return binary_cross_entropy(outputs, y)

    def _measured(self, outputs: Any, y: Any, mask: Any) -> tuple[Array, Array | None, Metrics]:
        decoded, codes = outputs
        elements = self._losses(decoded, y)
        reconstruction = jnp.sum(elements.reshape(elements.shape[0], -1), axis=1)
        divergence = _divergence(*_halves(at_least_float32(codes), self.latent_size))
        losses = reconstruction + self.beta * divergence
        metrics = MetricsCollection(
            loss=Mean(losses, mask),
            reconstruction=Mean(reconstruction, mask),
            divergence=Mean(divergence, mask),
        )
        return losses, mask, metrics


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Pair:
    """Encoder and decoder as one model with outputs `(decoded, codes)`.

    With a `latent_size`, the codes are means and log variances of latents. The decoder then
    receives latents drawn from this distribution in training, and its means in evaluation.
    """

    encoder: Model
    decoder: Model
    latent_size: int | None = None

    def init(self, key: Array, x: Any, /) -> tuple[Params, State]:
        """`params, state = model.init(key, x)`: dicts with the keys "encoder" and "decoder"."""
        first, second = jax.random.split(key)
        one, one_state = self.encoder.init(first, x)
        codes, _ = self.encoder.forward(one, one_state, x, train=False)
        other, other_state = self.decoder.init(second, self._latents(codes, None))
        params = {"encoder": one, "decoder": other}
        return params, {"encoder": one_state, "decoder": other_state}

    def forward(
        self, params: Params, state: State, x: Any, /, *, train: bool, key: Array | None = None
    ) -> tuple[Any, State]:
        """`(decoded, codes), state = model.forward(params, state, x, train=True, key=key)`."""
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        codes, one = self.encoder.forward(
            params["encoder"], state["encoder"], x, train=train, key=keys[0]
        )
        latents = self._latents(codes, keys[1] if train else None)
        decoded, other = self.decoder.forward(
            params["decoder"], state["decoder"], latents, train=train, key=keys[2]
        )
        return (decoded, codes), {"encoder": one, "decoder": other}

    def _latents(self, codes: Any, key: Array | None) -> Any:
        if self.latent_size is None:
            return codes
        mean, log_variance = _halves(codes, self.latent_size)
        if key is None:
            return mean
        return mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape, mean.dtype)


def _halves(codes: Any, latent_size: int) -> tuple[Array, Array]:
    if shape_of(codes)[1:] != (2 * latent_size,):
        raise DataError(
            f"the encoder must give {latent_size} means and as many logarithms of variances, of "
            f"shape [n, {2 * latent_size}]; it gave {describe_batch(codes)}. Change its last "
            f"layer, or latent_size"
        )
    return codes[:, :latent_size], codes[:, latent_size:]


def _divergence(mean: Array, log_variance: Array) -> Array:
    """KL divergence from the standard normal, in nats per example.

    Kingma and Welling (2014), appendix B.
    """
    return jnp.sum(jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance, axis=1) / 2
