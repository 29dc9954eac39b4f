"""Autoencoders, plain and variational, of any two models and any optimiser."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from solstice._arguments import function_or_none, not_negative, whole
from solstice._errors import DataError
from solstice._metrics import Metrics, at_least_float32
from solstice._types import Batch
from solstice.compat import Model, Params, State
from solstice.compat._registry import adapt_argument
from solstice.data._source import describe_batch
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
from solstice.experiments._learner import Learner, one_key
from solstice.experiments._losses import binary_cross_entropy, squared_error
from solstice.metrics import Mean, MetricsCollection, RegressionMetrics


class _Reconstructing(OneModelExperiment):
    """An Experiment whose targets are its inputs, one array."""

    def _parts(self, batch: Batch) -> tuple[Any, Any, Any]:
        _, mask = unmasked(batch)
        x = features_of(batch)
        return x, x, mask

    def check_batch(self, batch: Batch) -> None:
        """Refuses features that cannot be, masked ones too: they all go through the encoder."""
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
        """`decoded = exp(x)`: what the decoder makes of the encoder's codes, in evaluation mode."""
        return super().__call__(x)[0]

    def _part(self, name: str, x: Any) -> Any:
        """The outputs of one of the two models, in evaluation mode."""
        learner = self.learner
        params = learner.eval_params()
        pair: Any = learner.model
        outputs, _ = getattr(pair, name).forward(params[name], learner.state[name], x, train=False)
        return outputs


class AutoencoderExperiment(_Reconstructing):
    """`AutoencoderExperiment(encoder, decoder, optax.adam(1e-3))`: learns to give its inputs back.

    ```python
    exp = exp.train(images, batch_size=32, num_epochs=10)
    codes = exp.encode(images)
    images = exp.decode(codes)
    ```

    A batch is features, an array of floating point of shape [n, ...]; or a tuple or list that
    begins with them, such as a pair with labels, which are not looked at; or a
    `solstice.data.Masked` one. The encoder gives codes of shape [n, ...], and the decoder makes
    features of them. The loss is the mean squared error. Steps return `RegressionMetrics` with it.

    Args:
        encoder, decoder: each a `solstice.compat.Model`, or a model that has an adapter. The params
            are those of both, by these names.
        loss: `loss(reconstruction, features)`, one number for each example or element.
        metrics: `metrics(reconstruction, features, mask)`, in place of `RegressionMetrics`.
        optimizer, seed, sample_input, micro_batches: as in `ClassificationExperiment`.

    Raises:
        ValueError, TypeError: as `ClassificationExperiment`.
        DataError: in a step, the features are no floating point, or NaN, or the decoder gives
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
        """`codes = exp.encode(x)`: what the encoder makes of features."""
        return self._part("encoder", x)

    def decode(self, z: Any) -> Any:
        """`x = exp.decode(codes)`: what the decoder makes of codes."""
        return self._part("decoder", z)

    def predict_step(self, batch: Batch) -> Any:
        """`reconstructions = exp.predict_step(x)`."""
        return self(self._features(batch))

    def _usual_loss(self, outputs: Any, y: Any) -> Array:
        return squared_error(outputs, y)

    def _usual_metrics(self, outputs: Any, y: Any, mask: Array) -> Metrics:
        return RegressionMetrics(outputs, y, mask=mask)

    def _measured(self, outputs: Any, y: Any, mask: Any) -> tuple[Array, Array | None, Metrics]:
        return super()._measured(outputs[0], y, mask)


class VAEExperiment(_Reconstructing):
    """`VAEExperiment(encoder, decoder, optax.adam(1e-3), latent_size=8)`: a variational one.

    ```python
    exp = exp.train(images, batch_size=32, num_epochs=10)
    images = exp.sample(jax.random.key(0), 16)
    ```

    A batch is as for `AutoencoderExperiment`. The encoder gives the means of the latents and then
    the logarithms of their variances, [n, 2 * latent_size]; the decoder makes of latents,
    [n, latent_size], the parameters of a distribution over features.

    The loss is the negative evidence lower bound of Kingma and Welling (2014), in nats an example:
    the sum over features of `loss`, and `beta` times the divergence of the latents from the
    standard normal distribution. In training the latents are drawn. In evaluation they are the
    means, so that the numbers depend on no chance and no batches; the loss is then no bound, but
    near it. Steps return "loss", "reconstruction" and "divergence".

    Args:
        encoder, decoder: as in `AutoencoderExperiment`.
        latent_size: numbers in a latent.
        beta: how much the divergence counts (Higgins et al., 2017).
        loss: `loss(decoded, features)`, -log p of each element; left out, the binary
            cross-entropy of logits, for features in [0, 1].
        activation: what makes features of what is decoded, in `decode`, `sample` and predictions:
            left out, the sigmoid with the usual loss, nothing with another.
        optimizer, seed, sample_input, micro_batches: as in `ClassificationExperiment`.

    Raises:
        ValueError, TypeError: as `ClassificationExperiment`.
        DataError: in a step, the features are no floating point, NaN, or outside [0, 1] where the
            loss is the usual one; or the models give other shapes.
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
        """`mean, log_variance = exp.encode(x)`: of the latents, each [n, latent_size]."""
        return _halves(self._part("encoder", x), self.latent_size)

    def decode(self, z: Any) -> Any:
        """`x = exp.decode(z)`: the features that latents, [n, latent_size], stand for."""
        return self._activated(self._part("decoder", z))

    def sample(self, key: Array, num: int) -> Any:
        """`x = exp.sample(key, 16)`: features decoded from 16 latents drawn at random.

        Raises:
            DataError: the experiment has no values yet.
        """
        shape = whole("num", num), self.latent_size
        return self.decode(jax.random.normal(one_key("key", key), shape))

    def predict_step(self, batch: Batch) -> Any:
        """`reconstructions = exp.predict_step(x)`: from the means of the latents."""
        return self._activated(self(self._features(batch)))

    def _activated(self, decoded: Any) -> Any:
        return decoded if self.activation is None else self.activation(decoded)

    def _check_values(self, y: Any) -> None:
        super()._check_values(y)
        if self.options.loss is None and y.size and (y.min() < 0 or y.max() > 1):
            raise DataError(
                f"features must be in [0, 1] for the usual loss; they are in [{y.min()}, "
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
    """Two models as one, which gives what is decoded and the codes that it was decoded from.

    With a `latent_size`, the codes are means and log variances, and what is decoded is drawn from
    those in training, and their means in evaluation.
    """

    encoder: Model
    decoder: Model
    latent_size: int | None = None

    def init(self, key: Array, x: Any, /) -> tuple[Params, State]:
        """`params, state = model.init(key, x)`."""
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
    """From the standard normal, in nats an example (Kingma and Welling, 2014, appendix B)."""
    return jnp.sum(jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance, axis=1) / 2
