"""Autoencoders: plain and variational, from two models and an optimiser."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from solstice import _tree
from solstice._arguments import function_or_none, not_negative, whole
from solstice._errors import DataError
from solstice._keywords import keywords_explained
from solstice._metrics import at_least_float32
from solstice._types import Adaptable, AnyArray, Batch, Inputs, ModelOutputs, Targets
from solstice.compat import Model, Params, State, adapt_argument
from solstice.experiments._checks import (
    check_no_nan,
    features_of,
    of_shape,
    shape_of,
)
from solstice.experiments._keys import one_key
from solstice.experiments._learner import Learner
from solstice.experiments._losses import binary_cross_entropy, squared_error
from solstice.experiments._supervised import Options, SupervisedExperiment
from solstice.experiments._task import LossFunction, Reconstruction, elementwise
from solstice.experiments._task_batch import check_losses
from solstice.metrics import Mean, MetricsCollection, RegressionMetrics


class AutoencoderTask(Reconstruction):
    """The inputs themselves."""

    @elementwise
    def check_values(self, batch: Batch, mask: AnyArray | None) -> None:
        # Masked examples too: all go through the encoder, and BatchNorm would spread their NaN.
        check_no_nan(_tree.to_numpy(features_of(batch)))

    def outputs(self, outputs: ModelOutputs, x: Inputs, targets: Targets | None) -> Array:
        return _decoded(outputs, x)[0]

    def losses(self, outputs: Array, targets: Array, mask: Array) -> Array:
        return squared_error(outputs, targets)

    def metrics(
        self, outputs: Array, targets: Array, mask: Array, weights: Array | None = None
    ) -> RegressionMetrics:
        return RegressionMetrics(outputs, targets, mask=mask, weights=weights)


class AutoencoderExperiment(SupervisedExperiment[AutoencoderTask]):
    """`AutoencoderExperiment(encoder, decoder, optax.adam(1e-3))`: learns to reproduce its inputs.

    ```python
    exp = exp.train(images, batch_size=32, num_epochs=10)
    codes = exp.encode(images)
    images = exp.decode(codes)
    ```

    A batch is a floating-point array of features of shape [n, ...], or a tuple or list with
    features first (labels are ignored, weights are third), or a `solstice.data.Masked` of either.
    The encoder returns codes of shape [n, ...], and the decoder turns codes into features. The loss
    is the mean squared error. Steps return `RegressionMetrics` with this loss.

    Args:
        encoder, decoder: each a `solstice.compat.Model`, or a model with an adapter. The
            Experiment's params are `{"encoder": ..., "decoder": ...}`.
        loss: `loss(reconstruction, features)`, one number for each example or element.
        metrics: `metrics(reconstruction, features, mask, weights=None)`, in place of
            `RegressionMetrics`.
        optimizer, seed, sample_input, micro_batches: as in `ClassificationExperiment`.

    Raises:
        ValueError, TypeError: as `ClassificationExperiment`.
        DataError: in a step, features are not floating point, or are NaN, or the decoder returns
            another shape.
    """

    @keywords_explained
    def __init__(
        self,
        encoder: Adaptable,
        decoder: Adaptable,
        optimizer: Adaptable,
        *,
        seed: int | Array = 0,
        **options: Unpack[Options],
    ) -> None:
        model = _pair_of(encoder, decoder)
        super().__init__(model, optimizer, AutoencoderTask(), seed=seed, **options)

    def encode(self, x: Inputs) -> ModelOutputs:
        """`codes = exp.encode(x)`: the encoder's outputs for features of shape [n, ...]."""
        return _part(self.learner, "encoder", x)

    def decode(self, z: Inputs) -> ModelOutputs:
        """`x = exp.decode(codes)`: the decoder's outputs for codes of shape [n, ...]."""
        return _part(self.learner, "decoder", z)


_Outputs: TypeAlias = tuple[Array, Array]
"""Decoded features, and codes."""


class VAETask(Reconstruction):
    """The inputs themselves, from latents that are close to a normal distribution."""

    latent_size: int = eqx.field(static=True)
    beta: float = eqx.field(static=True)
    loss: LossFunction | None = eqx.field(static=True)
    activation: Callable[[Array], Array] | None = eqx.field(static=True)

    @elementwise
    def check_values(self, batch: Batch, mask: AnyArray | None) -> None:
        x = _tree.to_numpy(features_of(batch))
        check_no_nan(x)
        if self.loss is None and x.size and (x.min() < 0 or x.max() > 1):
            raise DataError(
                f"features must be in [0, 1] for the default loss; they are in [{x.min()}, "
                f"{x.max()}]. Scale them, or give another `loss`"
            )

    def outputs(
        self, outputs: ModelOutputs, x: Inputs, targets: Targets | None
    ) -> Array | _Outputs:
        decoded, codes = _decoded(outputs, x)
        return decoded if targets is None else (decoded, codes)

    def losses(self, outputs: _Outputs, targets: Array, mask: Array) -> Array:
        reconstruction, divergence = self._terms(outputs, targets)
        return reconstruction + self.beta * divergence

    def metrics(
        self, outputs: _Outputs, targets: Array, mask: Array, weights: Array | None = None
    ) -> MetricsCollection:
        reconstruction, divergence = self._terms(outputs, targets)
        shares = mask if weights is None else weights
        return MetricsCollection(
            reconstruction=Mean(reconstruction, shares), divergence=Mean(divergence, shares)
        )

    def predictions(self, outputs: Array) -> Array:
        return outputs if self.activation is None else self.activation(outputs)

    def _terms(self, outputs: _Outputs, x: Array) -> tuple[Array, Array]:
        """The reconstruction loss of each example, and its divergence."""
        decoded, codes = outputs
        elements = (self.loss or binary_cross_entropy)(decoded, x)
        check_losses(elements, x.shape[0])
        reconstruction = jnp.sum(elements.reshape(elements.shape[0], -1), axis=1)
        return reconstruction, _divergence(*_halves(at_least_float32(codes), self.latent_size))


class VAEExperiment(SupervisedExperiment[VAETask]):
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

    @keywords_explained
    def __init__(
        self,
        encoder: Adaptable,
        decoder: Adaptable,
        optimizer: Adaptable,
        latent_size: int,
        *,
        beta: float = 1.0,
        seed: int | Array = 0,
        activation: Callable[[Array], Array] | None = None,
        **options: Unpack[Options],
    ) -> None:
        size, beta = whole("latent_size", latent_size), not_negative("beta", beta)
        loss = function_or_none("loss", options.pop("loss", None), "loss=optax.squared_error")
        function_or_none("activation", activation, "activation=jax.nn.sigmoid")
        # The default loss takes logits, so the features are their sigmoid.
        if loss is None and activation is None:
            activation = jax.nn.sigmoid
        model = _pair_of(encoder, decoder, size)
        task = VAETask(size, beta, loss, activation)
        super().__init__(model, optimizer, task, seed=seed, **options)

    def encode(self, x: Inputs) -> tuple[Array, Array]:
        """`mean, log_variance = exp.encode(x)`: of the latents, each of shape [n, latent_size]."""
        return _halves(_part(self.learner, "encoder", x), self.task.latent_size)

    def decode(self, z: Inputs) -> Array:
        """`x = exp.decode(z)`: features from latents of shape [n, latent_size]."""
        return self.task.predictions(_part(self.learner, "decoder", z))

    def sample(self, key: Array, num: int) -> Array:
        """`x = exp.sample(key, 16)`: features decoded from 16 latents drawn at random.

        Raises:
            ValueError: `num` is below 1.
            DataError: the models have not been initialised.
        """
        shape = whole("num", num), self.task.latent_size
        return self.decode(jax.random.normal(one_key("key", key), shape))


def _pair_of(encoder: Adaptable, decoder: Adaptable, latent_size: int | None = None) -> Model:
    encoder = adapt_argument("encoder", "model", encoder)
    return _Pair(encoder, adapt_argument("decoder", "model", decoder), latent_size)


def _part(learner: Learner, name: str, x: Inputs) -> ModelOutputs:
    """The outputs of the encoder or the decoder, with the weights for evaluation."""
    params, model = learner.eval_params(), getattr(learner.model, name)
    return model.forward(params[name], learner.state[name], x, train=False)[0]


def _decoded(outputs: ModelOutputs, x: Inputs) -> _Outputs:
    """The outputs of a `_Pair`, after a check of their shape."""
    decoded, codes = outputs
    must = f"the decoder must give the shape of the features, {list(x.shape)}"
    return of_shape(decoded, x.shape, must), codes


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

    def init(self, key: Array, x: Inputs, /) -> tuple[Params, State]:
        """`params, state = model.init(key, x)`: dicts with the keys "encoder" and "decoder"."""
        first, second = jax.random.split(key)
        one, one_state = self.encoder.init(first, x)
        codes, _ = self.encoder.forward(one, one_state, x, train=False)
        other, other_state = self.decoder.init(second, self._latents(codes, None))
        params = {"encoder": one, "decoder": other}
        return params, {"encoder": one_state, "decoder": other_state}

    def forward(
        self, params: Params, state: State, x: Inputs, /, *, train: bool, key: Array | None = None
    ) -> tuple[tuple[ModelOutputs, ModelOutputs], State]:
        """`(decoded, codes), state = model.forward(params, state, x, train=True, key=key)`."""
        # Three keys, because the latents must not depend on the masks of Dropout.
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        codes, one = self.encoder.forward(
            params["encoder"], state["encoder"], x, train=train, key=keys[0]
        )
        latents = self._latents(codes, keys[1] if train else None)
        decoded, other = self.decoder.forward(
            params["decoder"], state["decoder"], latents, train=train, key=keys[2]
        )
        return (decoded, codes), {"encoder": one, "decoder": other}

    def _latents(self, codes: ModelOutputs, key: Array | None) -> ModelOutputs:
        if self.latent_size is None:
            return codes
        mean, log_variance = _halves(codes, self.latent_size)
        if key is None:
            return mean
        return mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape, mean.dtype)


def _halves(codes: ModelOutputs, latent_size: int) -> tuple[Array, Array]:
    must = (
        f"the encoder must give {latent_size} means and as many logarithms of variances, of shape "
        f"[n, {2 * latent_size}]"
    )
    of_shape(codes, (*shape_of(codes)[:1], 2 * latent_size), must, ", or latent_size")
    return codes[:, :latent_size], codes[:, latent_size:]


def _divergence(mean: Array, log_variance: Array) -> Array:
    """KL divergence from the standard normal, in nats per example.

    Kingma and Welling (2014), appendix B.
    """
    return jnp.sum(jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance, axis=1) / 2
