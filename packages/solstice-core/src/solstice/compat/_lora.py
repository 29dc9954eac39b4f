"""LoRA: a model with fixed weights, and a trained product of two thin matrices beside each."""

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array

from solstice import _tree
from solstice._arguments import names, positive, whole
from solstice._types import Batch
from solstice.compat._protocols import Model, Params, State
from solstice.compat._registry import adapt_argument


def lora(
    model: object,
    rank: int = 8,
    on: str | Iterable[str] | Callable[[str], bool] = "*",
    *,
    alpha: float | None = None,
    params: Params = None,
    state: State = None,
) -> "Lora":
    """`model = solstice.compat.lora(net, rank=8, on="*/kernel", params=pretrained)`: train little.

    ```python
    model = solstice.compat.lora(net, rank=8, on="*/kernel", params=pretrained)
    exp = solstice.ClassificationExperiment(model, optax.adam(1e-3), num_classes=10)
    exp = exp.train(train_ds, num_epochs=3)
    solstice.checkpoint.save("lora", exp.params)     # the matrices alone
    merged = model.merge(exp.params, exp.state)      # params for `net`
    ```

    To each chosen weight, a product of two thin matrices is added (Hu et al., "LoRA", 2021). The
    matrices are the params of this model: they alone are trained, and the optimiser has no state
    for the rest. The weights themselves are in the model's state, and do not change. At the start
    the product is 0.

    A weight with more than two axes is taken as a matrix, cut where it is squarest: the kernel of
    a convolution of shape [3, 3, 64, 128] as [576, 128]. The gradient of a whole weight is in
    memory for a moment. With `mixed_precision`, write `lora(mixed_precision(net, policy))`.

    Args:
        model: a `Model`, or a model that has an adapter.
        rank: the number of columns of a matrix; at most the shorter side of its weight.
        on: which params, by their paths such as "encoder/Dense_0/kernel": a pattern, several, or a
            function of the path. In a pattern, `*` stands for anything, slashes too. Those with
            fewer than two axes, such as biases, are left out.
        alpha: the product is multiplied by `alpha / rank`; None is 1.
        params: the weights, such as `exp.params` of a trained Experiment or those that
            `checkpoint.load` returns; None for those of `model.init`.
        state: the model's state that belongs to them, such as batch statistics; None for that of
            `model.init`.

    Raises:
        TypeError, AdapterError: there is no adapter for `model`, or `on` holds no text.
        ValueError: `rank` is below 1, `alpha` is not a number above 0, or `on` is empty; or, at
            `init`, a pattern matches no weight, or `params` or `state` do not fit the model.
    """
    chosen = on if callable(on) else names("on", on)
    if not chosen:
        raise ValueError(
            f'on must be a pattern such as "*/kernel", several, or a function of the path; it is '
            f"{on!r}"
        )
    rank = whole("rank", rank)
    scale = 1.0 if alpha is None else positive("alpha", alpha) / rank
    return Lora(adapt_argument("model", "model", model), rank, chosen, scale, params, state)


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class Lora:
    """`solstice.compat.lora(net, rank=8, on="*/kernel")`: a `Model` whose params are thin matrices.

    Its params are a dict by path: `params["Dense_0/kernel"]["a"]` of shape [m, rank], and `"b"` of
    shape [rank, n], for a weight that is [m, n] as a matrix. Its state has the weights, "base", and
    the state of the model, "model".

    Attributes:
        model: the model inside.
        rank: the number of columns of a matrix.
        on: which weights.
        scale: the factor of the products.
        params: the given weights, or None.
        state: the given state of the model, or None.
    """

    model: Model
    rank: int
    on: tuple[str, ...] | Callable[[str], bool]
    scale: float
    # Not in the repr, by which a checkpoint compares static objects: all weights would be read.
    params: Params = field(repr=False)
    state: State = field(repr=False)

    def init(self, key: Array, x: Batch, /) -> tuple[Params, State]:
        """`params, state = model.init(key, x)`.

        Raises:
            ValueError: a pattern matches no weight, or the given weights do not fit the model.
        """
        base, inner = self._base(key, x)
        weights = self._chosen(_tree.leaves_by_slashes(base))
        keys = jax.random.split(jax.random.fold_in(key, 1), len(weights))
        pairs = zip(weights.items(), keys, strict=True)
        params = {path: self._pair(weight, key) for (path, weight), key in pairs}
        return params, {"base": base, "model": inner}

    def forward(
        self, params: Params, state: State, x: Batch, /, *, train: bool, key: Array | None = None
    ) -> tuple[Any, State]:
        """`outputs, state = model.forward(params, state, x, train=True, key=key)`."""
        merged = self.merge(params, state)
        outputs, inner = self.model.forward(merged, state["model"], x, train=train, key=key)
        return outputs, {**state, "model": inner}

    def merge(self, params: Params, state: State) -> Params:
        """`merged = model.merge(exp.params, exp.state)`: params for the model inside.

        Each chosen weight has its product added, and the same dtype. The model inside has the same
        outputs with them.
        """
        base = state["base"]
        leaves = [
            self._merged(leaf, params[path]) if path in params else leaf
            for path, leaf in _tree.leaves_by_slashes(base).items()
        ]
        return _tree.unflatten(_tree.structure(base), leaves)

    def _merged(self, weight: Array, pair: Mapping[str, Array]) -> Array:
        # Of float32 in full precision, which an accelerator would round to less by default.
        product = jnp.matmul(pair["a"], pair["b"], precision="highest")
        scaled = product.reshape(weight.shape) * jnp.asarray(self.scale, product.dtype)
        return _tree.in_dtype_of(_tree.wide(weight) + scaled, weight)

    def _pair(self, weight: Array, key: Array) -> dict[str, Array]:
        rows, columns = _sides(weight.shape)
        # At least float32, because a small change of a bfloat16 number is lost.
        dtype = weight.dtype if weight.dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
        rank = min(self.rank, rows, columns)
        a = jax.random.normal(key, (rows, rank), dtype) / jnp.asarray(math.sqrt(rows), dtype)
        return {"a": a, "b": jnp.zeros((rank, columns), dtype)}

    def _base(self, key: Array, x: Batch) -> tuple[Params, State]:
        """The weights, and the state of the model: as given, or those of the model."""
        if self.params is None or self.state is None:
            params, state = self.model.init(key, x)
        else:
            params, state = _tree.eval_shape(self.model.init, key, x)
        return _fitting("params", self.params, params), _fitting("state", self.state, state)

    def _chosen(self, weights: dict[str, Array]) -> dict[str, Array]:
        """The weights to which a product is added, by path.

        Raises:
            ValueError: a pattern matches none.
        """
        wide = {path: weight for path, weight in weights.items() if weight.ndim > 1}
        patterns = (self.on,) if callable(self.on) else self.on
        found = {
            pattern: [path for path in wide if _matches(pattern, path)] for pattern in patterns
        }
        for pattern, paths in found.items():
            if not paths:
                raise ValueError(
                    f"lora: on={pattern!r} matches no weight with two axes or more. These are: "
                    f"{', '.join([*wide][:20])}{' ...' if len(wide) > 20 else ''}"
                )
        chosen = {path for paths in found.values() for path in paths}
        return {path: weight for path, weight in wide.items() if path in chosen}


def _matches(pattern: str | Callable[[str], bool], path: str) -> bool:
    return bool(pattern(path)) if callable(pattern) else fnmatch.fnmatchcase(path, pattern)


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """The sides of a weight as a matrix: its axes, cut where the matrix is squarest."""
    cuts = [(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape))]
    return max(cuts, key=min)


def _fitting(name: str, given: Any, expected: Any) -> Any:
    """The given tree; that of the model if it is None.

    Raises:
        ValueError: a path, a shape or a dtype differs.
    """
    if given is None:
        return expected
    mine, theirs = _kinds(expected), _kinds(given)
    if mine != theirs or _tree.structure(given) != _tree.structure(expected):
        path = next((p for p in [*mine, *theirs] if mine.get(p) != theirs.get(p)), "")
        raise ValueError(
            f"lora: the given {name} do not fit the model: at `{path or '.'}` the model has "
            f"{mine.get(path, 'nothing')}, and they have {theirs.get(path, 'nothing')}"
        )
    return _tree.map(cast("Any", jnp.asarray), given)


def _kinds(tree: Any) -> dict[str, str]:
    leaves = _tree.leaves_by_slashes(tree)
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves.items()}
