"""Language modelling: next-token training, evaluation and text generation."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from solstice._arguments import integers, not_negative, whole
from solstice._batch import describe_batch
from solstice._engine import PROGRAMS, Program, program_of
from solstice._errors import DataError
from solstice._hints import mask_hint
from solstice._metrics import at_least_float32
from solstice._types import Batch
from solstice.experiments._base import (
    LossFunction,
    MetricsFunction,
    OneModelExperiment,
    Options,
    shape_of,
    unmasked,
)
from solstice.experiments._keys import one_key
from solstice.experiments._learner import Learner
from solstice.experiments._losses import check_smoothing, cross_entropy
from solstice.metrics import LanguageModelMetrics


class LanguageModelExperiment(OneModelExperiment):
    """`LanguageModelExperiment(model, optax.adam(3e-4), vocabulary_size=256)`: a language model.

    ```python
    exp = exp.train(tokens, batch_size=32, num_epochs=5)      # integers of shape [texts, length]
    exp.test(held_out, batch_size=32)["perplexity"]
    texts = exp.generate(prompts, 100, key=jax.random.key(0))
    ```

    A batch is an array of tokens, integers of shape [n, length] in [0, vocabulary_size), or a
    `solstice.data.Masked` of one with a mask of shape [n] or [n, length]. The model receives all
    tokens except the last, [n, length - 1], and returns logits of shape [n, length - 1,
    vocabulary_size] for the following tokens; it must be causal. Lengths may differ from batch to
    batch. The loss is the mean cross-entropy over all tokens that count. Steps return
    `LanguageModelMetrics` with this loss.

    Args:
        vocabulary_size: number of tokens.
        pad_id: the padding token; targets with this value do not count.
        token_bytes: number of bytes of text for each token, integers of shape [vocabulary_size];
            adds the metric "bits_per_byte".
        label_smoothing: as in `ClassificationExperiment`.
        loss: `loss(logits, targets)`, of shape [n, length - 1], in place of the cross-entropy.
        metrics: `metrics(logits, targets, mask)`, in place of `LanguageModelMetrics`; targets and
            mask are of shape [n, length - 1].
        model, optimizer, seed, sample_input, micro_batches: as in `ClassificationExperiment`. The
            gradient of micro-batches is weighted by tokens.

    Raises:
        ValueError, TypeError: as `ClassificationExperiment`.
        DataError: in a step, the batch is not an array of tokens, or logits have another shape.
    """

    learner: Learner
    token_bytes: Array | None
    vocabulary_size: int = eqx.field(static=True)
    pad_id: int | None = eqx.field(static=True)
    label_smoothing: float = eqx.field(static=True)
    options: Options = eqx.field(static=True)

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        vocabulary_size: int,
        *,
        pad_id: int | None = None,
        token_bytes: ArrayLike | None = None,
        seed: int | Array = 0,
        sample_input: Any = None,
        label_smoothing: float = 0.0,
        loss: LossFunction | None = None,
        metrics: MetricsFunction | None = None,
        micro_batches: int = 1,
    ) -> None:
        self.vocabulary_size = size = whole("vocabulary_size", vocabulary_size, 2)
        self.pad_id = None if pad_id is None else whole("pad_id", pad_id, 0, most=size - 1)
        self.token_bytes = _bytes(token_bytes, size)
        self.label_smoothing = check_smoothing(label_smoothing, loss)
        self.options = Options(loss, metrics, micro_batches)
        self.learner = Learner(model, optimizer, seed=seed, sample_input=sample_input, free_axes=2)

    def generate(
        self, prompts: ArrayLike, num_tokens: int, *, key: Array, temperature: float = 1.0
    ) -> Array:
        """`texts = exp.generate(prompts, 100, key=key)`: add 100 tokens to each prompt.

        Each token is drawn from the model's distribution, with the weights for evaluation. There is
        no cache: for each token the model runs over the whole text, so any model works.

        Args:
            prompts: integers of shape [n, length], with a length of 1 or more.
            num_tokens: number of tokens to add, 0 or more.
            key: a PRNG key.
            temperature: divisor of the logits, 0 or more; 0 takes the most likely token.

        Returns:
            Prompts and new tokens, int32 of shape [n, length + num_tokens].

        Raises:
            ValueError: `num_tokens` or `temperature` is negative.
            DataError: the prompts are not tokens, or the model has not been initialised.
            FloatingPointError: a logit is NaN.
        """
        num_tokens = whole("num_tokens", num_tokens, 0)
        temperature = not_negative("temperature", temperature)
        key = one_key("key", key)
        prompts = jnp.asarray(integers("prompts", prompts))
        self._check_tokens(prompts, at_least=1)
        self._check_values(np.asarray(prompts))
        if num_tokens == 0:
            return prompts.astype(jnp.int32)
        program, arrays = program_of(self, _generate, "generate")
        tokens, bad = _compiled(program)(
            arrays, prompts.astype(jnp.int32), num_tokens, key, jnp.float32(temperature)
        )
        if bad:
            raise FloatingPointError(
                f"the model's logits are NaN, so there is no next token. Either its weights are "
                f"NaN, or it does not support texts of {tokens.shape[1] - 1} tokens: it runs on "
                f"len(prompt) + num_tokens - 1 tokens at once"
            )
        return tokens

    def predict_step(self, batch: Batch) -> Array:
        """`probabilities = exp.predict_step(tokens)`: of the next token at each position.

        Float of shape [n, length, vocabulary_size].
        """
        return jax.nn.softmax(self(unmasked(batch)[0]))

    def _parts(self, batch: Batch) -> tuple[Any, Any, Any]:
        tokens, mask = unmasked(batch)
        self._check_tokens(tokens, at_least=2)
        targets = tokens[:, 1:]
        counts = jnp.ones(targets.shape, bool) if self.pad_id is None else targets != self.pad_id
        if mask is not None:
            if mask.ndim not in (1, 2) or mask.shape != tokens.shape[: mask.ndim]:
                raise DataError(
                    f"the mask of tokens of shape {list(tokens.shape)} must be of that shape, or "
                    f"[{tokens.shape[0]}]; it is {describe_batch(mask)}{mask_hint(mask)}"
                )
            counts &= mask[:, 1:] if mask.ndim == 2 else mask[:, None]
        return tokens[:, :-1], targets, counts

    def _check_tokens(self, tokens: Any, at_least: int) -> None:
        fits = getattr(tokens, "ndim", 0) == 2 and jnp.issubdtype(tokens.dtype, jnp.integer)
        if not fits or tokens.shape[1] < at_least:
            raise DataError(
                f"expected tokens, integers of shape [n, length] with a length of {at_least} or "
                f"more; they are {describe_batch(tokens)}"
            )

    def _check_targets(self, y: Any) -> None:
        """Nothing to do, because `_parts` has checked the tokens."""

    def check_batch(self, batch: Batch) -> None:
        """Raises a DataError if a token is not in the vocabulary."""
        self._check_values(np.asarray(unmasked(batch)[0]))

    def _check_values(self, y: Any) -> None:
        if y.size and (y.min() < 0 or y.max() >= self.vocabulary_size):
            bad = y[(y < 0) | (y >= self.vocabulary_size)]
            raise DataError(
                f"{bad.size} of {y.size} tokens are outside [0, {self.vocabulary_size}), such as "
                f"{bad[0]}. Fix them, or give another vocabulary_size"
            )

    def _outputs(self, outputs: Any, x: Any, y: Any) -> Any:
        expected = (*x.shape, self.vocabulary_size)
        if shape_of(outputs) != expected:
            raise DataError(
                f"the model must give logits of shape {list(expected)} for tokens of shape "
                f"{list(x.shape)}; it gave {describe_batch(outputs)}. Change its last layer, or "
                f"vocabulary_size"
            )
        return outputs

    def _usual_loss(self, outputs: Any, y: Any) -> Array:
        return cross_entropy(outputs, y, self.label_smoothing)

    def _usual_metrics(self, outputs: Any, y: Any, mask: Array) -> LanguageModelMetrics:
        num_bytes = None
        if self.token_bytes is not None:
            num_bytes = jnp.where(mask, self.token_bytes[y.astype(jnp.int32)], 0)
        return LanguageModelMetrics(outputs, y, mask=mask, num_bytes=num_bytes)


@lru_cache(maxsize=PROGRAMS)
def _compiled(program: Program) -> Callable[..., tuple[Array, Array]]:
    """`_generate`, compiled once for all Experiments that differ only in their arrays.

    The cache has the size of the engine's cache of programs.
    """

    def generate(arrays: list[Any], *given: Any) -> tuple[Array, Array]:
        return program.function(program.merge(arrays), *given)

    return cast("Any", jax.jit(generate, static_argnums=2))


def _generate(
    exp: LanguageModelExperiment, prompts: Array, num_tokens: int, key: Array, temperature: Array
) -> tuple[Array, Array]:
    """The texts, and whether a logit was NaN: a compiled function cannot raise."""
    start = prompts.shape[1]
    tokens = jnp.pad(prompts, ((0, 0), (0, num_tokens)))

    def add(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        tokens, bad = carry
        # All shapes are fixed, so one program does for all tokens. A causal model ignores the
        # positions from `index` on, which are still 0.
        logits = at_least_float32(jnp.take(exp(tokens[:, :-1]), index - 1, axis=1))
        bad |= jnp.isnan(logits).any()
        warm = jnp.where(temperature > 0, temperature, 1)
        drawn = jax.random.categorical(jax.random.fold_in(key, index), logits / warm)
        chosen = jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1))
        return tokens.at[:, index].set(chosen.astype(tokens.dtype)), bad

    begin = tokens, jnp.asarray(False)
    return cast("Any", jax.lax.fori_loop(start, start + num_tokens, add, begin))


def _bytes(token_bytes: ArrayLike | None, size: int) -> Array | None:
    if token_bytes is None:
        return None
    given = jnp.asarray(integers("token_bytes", token_bytes))
    if given.shape != (size,):
        raise ValueError(
            f"token_bytes must be an integer for each of the {size} tokens; they are "
            f"{describe_batch(given)}"
        )
    return given
