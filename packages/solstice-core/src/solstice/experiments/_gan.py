"""Generative adversarial networks: two models and two optimisers in one Experiment."""

from collections.abc import Callable
from typing import Self, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from solstice import _tree
from solstice._arguments import whole
from solstice._batch import is_traced, num_rows
from solstice._keywords import keywords_explained
from solstice._replace import replace
from solstice._shares import check_weights, of_triple
from solstice._signatures import called_with
from solstice._types import Adaptable, AnyArray, Batch, Inputs, ModelOutputs
from solstice.compat import adapt_argument
from solstice.data import weights_of
from solstice.experiments._checks import (
    check_floating,
    check_no_nan,
    features_of,
    of_shape,
    parts_of,
    unmasked,
    without_last_axis,
)
from solstice.experiments._gradients import Forward
from solstice.experiments._keys import key_of, one_key
from solstice.experiments._learner import Learner
from solstice.experiments._losses import binary_cross_entropy
from solstice.experiments._ready_made import ReadyMadeExperiment
from solstice.experiments._skipped import skipped_between
from solstice.metrics import Mean, MetricsCollection, Sum

_LOSS = "loss=optax.sigmoid_binary_cross_entropy"

GANLoss: TypeAlias = Callable[[Array, Array], Array]
"""`losses = loss(logits, is_real)`: shape [n]; small where the logits are right."""


class GANExperiment(ReadyMadeExperiment):
    """`GANExperiment(generator, discriminator, optax.adam(2e-4, b1=0.5), latent_size=32)`: a GAN.

    ```python
    exp = exp.train(images, batch_size=64, num_epochs=50)
    images = exp.sample(jax.random.key(0), 16)
    ```

    A batch is a floating-point array of features of shape [n, ...], or a tuple or list with
    features first (labels are ignored, weights are third), or a `solstice.data.Masked` of either.
    Each generated example has the weight of the real one at its place. The generator turns latents,
    of shape [n, latent_size] and drawn from the standard normal distribution, into
    features. The discriminator returns one logit per example, of shape [n] or [n, 1]: positive
    means real.

    Each step updates the discriminator on the batch and the same number of generated examples,
    then the generator against the new discriminator, with the non-saturating loss of Goodfellow
    et al. (2014). Steps return "discriminator_loss", "generator_loss", and "real_accuracy" and
    "generated_accuracy", the fractions that the discriminator classifies correctly. With
    `solstice.compat.skip_spikes`, training adds "discriminator_skipped" and "generator_skipped".

    Args:
        generator, discriminator: each a `solstice.compat.Model`, or a model with an adapter.
        optimizer: an `Optimizer`, or an optimiser with an adapter, for both models.
        latent_size: size of a latent vector.
        discriminator_optimizer: another optimiser for the discriminator.
        loss: `loss(logits, is_real)`, one number for each example, in place of the binary
            cross-entropy. The discriminator minimises it with `is_real` 1 for real and 0 for
            generated examples, the generator with 1 for generated ones. Least squares (Mao et al.,
            2017) is `lambda logits, is_real: (logits - is_real) ** 2`.
        seed: an integer or a PRNG key.
        sample_input: features of a batch of any size, to initialise both models at once.
        micro_batches: number of parts into which a batch is cut; see `Learner.update`.

    Attributes:
        generator, discriminator: a `Learner` each.

    Raises:
        ValueError: `latent_size` or `micro_batches` is below 1.
        TypeError, solstice.compat.AdapterError: as `ClassificationExperiment`.
        DataError: in a step, features are not floating point, or are NaN; or the generator returns
            another shape, or the discriminator does not return one logit for each example.
    """

    generator: Learner
    discriminator: Learner
    latent_size: int = eqx.field(static=True)
    loss: GANLoss | None = eqx.field(static=True)
    micro_batches: int = eqx.field(static=True)

    @keywords_explained
    def __init__(
        self,
        generator: Adaptable,
        discriminator: Adaptable,
        optimizer: Adaptable,
        latent_size: int,
        *,
        discriminator_optimizer: Adaptable = None,
        loss: GANLoss | None = None,
        seed: int | Array = 0,
        sample_input: Inputs = None,
        micro_batches: int = 1,
    ) -> None:
        latent_size = whole("latent_size", latent_size)
        self.micro_batches = whole("micro_batches", micro_batches)
        keys = jax.random.split(key_of(seed))
        optimizer = other = adapt_argument("optimizer", "optimizer", optimizer)
        if discriminator_optimizer is not None:
            name = "discriminator_optimizer"
            other = adapt_argument(name, "optimizer", discriminator_optimizer)
        latents = None if sample_input is None else jnp.zeros((1, latent_size))
        generator = adapt_argument("generator", "model", generator)
        discriminator = adapt_argument("discriminator", "model", discriminator)
        self.generator = Learner(generator, optimizer, seed=keys[0], sample_input=latents)
        self.discriminator = Learner(discriminator, other, seed=keys[1], sample_input=sample_input)
        self.latent_size = latent_size
        self.loss = called_with("loss", loss, _LOSS, "logits", "is_real")

    @property
    def step(self) -> Array:
        """Training steps taken, an int32 scalar."""
        return self.generator.step

    def sample(self, key: Array, num: int) -> ModelOutputs:
        """`x = exp.sample(key, 16)`: generate 16 examples, with the weights for evaluation.

        Raises:
            ValueError: `num` is below 1.
            DataError: the models have not been initialised.
        """
        return self.generator(self._latents(one_key("key", key), whole("num", num)))

    def check_batch(self, batch: Batch) -> None:
        """Raises a DataError if features are invalid.

        Masked examples are checked too, because all examples go through the discriminator.
        """
        x, weights = _features(batch)
        check_floating(x)
        check_no_nan(_tree.to_numpy(x))
        check_weights(weights)

    def stacked_check(self) -> Callable[[Batch], None]:
        """The check of values, for many batches at once."""
        return _check_stacked

    def setup(self, batch: Batch) -> Self:
        """Initialises both models from the first batch; a second call does nothing."""
        x, _ = _features(batch)
        check_floating(x)
        num_rows(x)
        if self.discriminator.inputs is not None:
            return self
        return replace(
            self,
            generator=self.generator.setup(jnp.zeros((1, self.latent_size))),
            discriminator=self.discriminator.setup(x),
        )

    def train_step(self, batch: Batch) -> tuple[Self, MetricsCollection]:
        """`exp, metrics = exp.train_step(batch)`: one update of each model."""
        self = self._ready(batch)
        real, mask = _features(batch)
        keys = jax.random.split(jax.random.fold_in(self.generator.key, self.step), 4)
        latents = self._latents(keys[0], num_rows(real))
        generated = self.generator.forward(train=True, key=keys[1])(latents)
        _check_generated(generated, real)
        discriminator, of_discriminator = self.discriminator.update(
            self._discriminates, (real, generated, mask), micro_batches=self.micro_batches
        )

        def fools(model: Forward, part: Batch) -> tuple[Array, AnyArray | None, MetricsCollection]:
            judge = discriminator.forward(train=True, key=keys[3])
            logits = _logits(judge(model(part[0])), num_rows(part[0]))
            losses = self._losses(logits, True)
            return losses, part[1], MetricsCollection(generator_loss=Mean(losses, part[1]))

        latents = self._latents(keys[2], num_rows(real))
        generator, of_generator = self.generator.update(
            fools, (latents, mask), micro_batches=self.micro_batches
        )
        skipped = self._skipped(discriminator, generator)
        metrics = MetricsCollection(**of_discriminator.parts, **of_generator.parts, **skipped)
        return replace(self, generator=generator, discriminator=discriminator), metrics

    def eval_step(self, batch: Batch) -> tuple[Self, MetricsCollection]:
        """`exp, metrics = exp.eval_step(batch)`: metrics with the weights for evaluation."""
        self = self._ready(batch)
        real, mask = _features(batch)
        key, drawn = jax.random.split(self.generator.key)
        generated = self.sample(drawn, num_rows(real))
        _check_generated(generated, real)
        of_discriminator = self.discriminator.evaluate(self._discriminates, (real, generated, mask))
        fooled = self._losses(_logits(self.discriminator(generated), num_rows(real)), True)
        metrics = MetricsCollection(**of_discriminator.parts, generator_loss=Mean(fooled, mask))
        # The new key reaches only the next batch: the Trainer drops this Experiment after the
        # evaluation, so that evaluation cannot change training.
        return replace(self, generator=replace(self.generator, key=key)), metrics

    def predict_step(self, batch: Batch) -> Array:
        """`logits = exp.predict_step(x)`: the discriminator's logits, of shape [n]."""
        x = features_of(unmasked(batch)[0])  # whatever the third part
        return _logits(self.discriminator(x), num_rows(x))

    def _ready(self, batch: Batch) -> Self:
        if not is_traced(batch):
            self.check_batch(batch)
        return self.setup(batch)

    def _discriminates(
        self, model: Forward, batch: Batch
    ) -> tuple[Array, AnyArray | None, MetricsCollection]:
        real, generated, mask = batch
        size = num_rows(real)
        on_real, on_generated = _logits(model(real), size), _logits(model(generated), size)
        losses = self._losses(on_real, True) + self._losses(on_generated, False)
        metrics = MetricsCollection(
            discriminator_loss=Mean(losses, mask),
            real_accuracy=Mean(on_real > 0, mask),
            generated_accuracy=Mean(on_generated <= 0, mask),
        )
        return losses, mask, metrics

    def _skipped(self, discriminator: Learner, generator: Learner) -> dict[str, Sum]:
        """The steps that each optimiser left out, if it counts them."""
        counts = {
            "discriminator_skipped": skipped_between(
                self.discriminator.opt_state, discriminator.opt_state
            ),
            "generator_skipped": skipped_between(self.generator.opt_state, generator.opt_state),
        }
        return {name: Sum(count) for name, count in counts.items() if count is not None}

    def _losses(self, logits: Array, is_real: bool) -> Array:
        return (self.loss or binary_cross_entropy)(logits, jnp.full_like(logits, is_real))

    def _latents(self, key: Array, num: int) -> Array:
        return jax.random.normal(key, (num, self.latent_size))


def _features(batch: Batch) -> tuple[Inputs, AnyArray | None]:
    """The real examples, and their mask or weights, or None."""
    bare, mask = weights_of(batch)
    return features_of(bare), mask


def _check_stacked(batches: Batch) -> None:
    bare, weights = of_triple(*parts_of(batches))
    check_no_nan(features_of(bare))
    check_weights(weights)


def _logits(outputs: ModelOutputs, size: int) -> Array:
    must = (
        f"the discriminator must give one logit for each example, of shape [{size}] or [{size}, 1]"
    )
    return of_shape(without_last_axis(outputs, size), (size,), must)


def _check_generated(generated: ModelOutputs, real: Inputs) -> None:
    must = f"the generator must give the shape of the features, {list(real.shape)}"
    of_shape(generated, real.shape, must)
