"""Language modelling: next-token training, evaluation and text generation."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar, Unpack, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from solstice import _tree
from solstice._arguments import integers, not_negative, whole
from solstice._batch import describe_batch, is_sequence
from solstice._engine import PROGRAMS, Program, program_of
from solstice._errors import DataError
from solstice._keywords import keywords_explained
from solstice._metrics import at_least_float32
from solstice._shares import product
from solstice._types import Adaptable, AnyArray, Batch, Inputs, ModelOutputs, Targets
from solstice.experiments._checks import check_mask, is_of, of_shape
from solstice.experiments._keys import one_key
from solstice.experiments._losses import check_smoothing, cross_entropy
from solstice.experiments._supervised import Options, SupervisedExperiment
from solstice.experiments._task import Task, elementwise
from solstice.metrics import LanguageModelMetrics


class LanguageModelTask(Task):
    """The next token, at each position of a text."""

    free_axes: ClassVar[int] = 2  # examples and tokens

    token_bytes: Array | None
    vocabulary_size: int = eqx.field(static=True)
    pad_id: int | None = eqx.field(static=True)
    label_smoothing: float = eqx.field(static=True)

    def split(self, batch: Batch, mask: AnyArray | None) -> tuple[Inputs, Targets, AnyArray]:
        _check_tokens(batch, at_least=2)
        targets: AnyArray = batch[:, 1:]
        counts = _all_of(targets) if self.pad_id is None else targets != self.pad_id
        if mask is not None:
            check_mask(mask, batch, "tokens")
            given = mask[:, 1:] if mask.ndim == 2 else mask[:, None]
            counts = counts & given if given.dtype == bool else product(given, counts)
        return batch[:, :-1], targets, counts

    def inputs(self, batch: Batch) -> Inputs:
        return batch

    @elementwise
    def check_values(self, batch: Batch, mask: AnyArray | None) -> None:
        tokens = _tree.to_numpy(batch)
        if tokens.size and (tokens.min() < 0 or tokens.max() >= self.vocabulary_size):
            bad = tokens[(tokens < 0) | (tokens >= self.vocabulary_size)]
            raise DataError(
                f"{bad.size} of {tokens.size} tokens are outside [0, {self.vocabulary_size}), such "
                f"as {bad[0]}. Fix them, or give another vocabulary_size"
            )

    def outputs(self, outputs: ModelOutputs, x: Inputs, targets: Targets) -> Array:
        shape, tokens = (*x.shape, self.vocabulary_size), list(x.shape)
        must = f"the model must give logits of shape {list(shape)} for tokens of shape {tokens}"
        return of_shape(outputs, shape, must, ", or vocabulary_size")

    def losses(self, outputs: Array, targets: Array, mask: Array) -> Array:
        return cross_entropy(outputs, targets, self.label_smoothing)

    def metrics(
        self, outputs: Array, targets: Array, mask: Array, weights: Array | None = None
    ) -> LanguageModelMetrics:
        num_bytes = None
        if self.token_bytes is not None:
            num_bytes = jnp.where(mask, self.token_bytes[targets.astype(jnp.int32)], 0)
        return LanguageModelMetrics(
            outputs, targets, mask=mask, weights=weights, num_bytes=num_bytes
        )

    def predictions(self, outputs: Array) -> Array:
        return jax.nn.softmax(outputs)


class LanguageModelExperiment(SupervisedExperiment[LanguageModelTask]):
    """`LanguageModelExperiment(model, optax.adam(3e-4), vocabulary_size=256)`: a language model.

    ```python
    exp = exp.train(tokens, batch_size=32, num_epochs=5)      # integers of shape [texts, length]
    exp.test(held_out, batch_size=32)["perplexity"]
    texts = exp.generate(prompts, 100, key=jax.random.key(0))
    ```

    A batch is an array of tokens, integers of shape [n, length] in [0, vocabulary_size), or a
    `solstice.data.Masked` of one with a mask, or weights, of shape [n] or [n, length]. The model
    receives all tokens except the last, [n, length - 1], and returns logits of shape [n, length -
    1, vocabulary_size] for the following tokens; it must be causal. Lengths may differ from batch
    to batch. The loss is the mean cross-entropy over all tokens that count. Steps return
    `LanguageModelMetrics` with this loss.

    Args:
        vocabulary_size: number of tokens.
        pad_id: the padding token; targets with this value do not count.
        token_bytes: number of bytes of text for each token, integers of shape [vocabulary_size];
            adds the metric "bits_per_byte".
        label_smoothing: as in `ClassificationExperiment`.
        loss: `loss(logits, targets)`, of shape [n, length - 1], in place of the cross-entropy.
        metrics: `metrics(logits, targets, mask, weights=None)`, in place of
            `LanguageModelMetrics`; targets, mask and weights are of shape [n, length - 1].
        model, optimizer, seed, sample_input, micro_batches: as in `ClassificationExperiment`. The
            gradient of micro-batches is weighted by tokens.

    Raises:
        ValueError, TypeError: as `ClassificationExperiment`.
        DataError: in a step, the batch is not an array of tokens, or logits have another shape.
    """

    @keywords_explained
    def __init__(
        self,
        model: Adaptable,
        optimizer: Adaptable,
        vocabulary_size: int,
        *,
        pad_id: int | None = None,
        token_bytes: ArrayLike | None = None,
        seed: int | Array = 0,
        label_smoothing: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        size = whole("vocabulary_size", vocabulary_size, 2)
        pad_id = None if pad_id is None else whole("pad_id", pad_id, 0, most=size - 1)
        smoothing = check_smoothing(label_smoothing, options.get("loss"))
        task = LanguageModelTask(_bytes(token_bytes, size), size, pad_id, smoothing)
        super().__init__(model, optimizer, task, seed=seed, **options)

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
        _check_tokens(prompts, at_least=1)
        self.task.check_values(prompts, None)
        if num_tokens == 0:
            return prompts.astype(jnp.int32)
        program, arrays = program_of(self, _generate, "generate")
        # The temperature is an array, so that another one compiles nothing.
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


def _all_of(targets: AnyArray) -> AnyArray:
    # On the host NumPy is a hundred times faster; in a compiled step this is not a constant.
    return (np if isinstance(targets, np.ndarray) else jnp).ones(targets.shape, bool)


def _check_tokens(tokens: Batch, at_least: int) -> None:
    if not is_of(tokens, jnp.integer) or tokens.ndim != 2 or tokens.shape[1] < at_least:
        parts = tokens if is_sequence(tokens) else ()
        has_weights = any(is_of(part, jnp.floating, jnp.bool_) for part in parts)
        hint = ". Weights or a mask go around the tokens: `solstice.data.Masked(tokens, weights)`"
        raise DataError(
            f"expected tokens, integers of shape [n, length] with a length of {at_least} or "
            f"more; they are {describe_batch(tokens)}{hint if has_weights else ''}"
        )


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
        warm = jnp.where(temperature > 0, temperature, 1)  # no division by 0
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
