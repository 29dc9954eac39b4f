"""MetricsConformance: the conformance suite for metrics."""

# The trees here have leaves of any type, so pyright cannot check them.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

import functools
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar, Self, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import Array

from solstice import _tree
from solstice._experiment import Experiment
from solstice._metrics import Metrics, may_raise, takes_members
from solstice._trainer import Trainer
from solstice._types import AnyArray, Batch
from solstice.testing._on_a_mesh import same_on_a_mesh
from solstice.testing._suite import Conformance, feature, optional, rests_on

_Parts: TypeAlias = tuple[int, ...]

SIZE = 16
PARTS: list[_Parts] = [(16,), (1, 15), (15, 1), (8, 8), (5, 5, 6), (1, 2, 5, 8), (3, 3, 5, 5)]
"""The sizes of batches. There are few different sizes, because each needs a compilation."""


def for_cases(check: Callable[[Any, Batch, _Parts], None]) -> Callable[[Any], None]:
    """Decorates a check that runs on random examples, cut into batches of random sizes."""

    @functools.wraps(check)
    def over(self: "MetricsConformance") -> None:
        @settings(
            max_examples=self.num_cases,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],  # a busy machine is not a fault
            database=None,
            derandomize=True,
        )
        @given(st.integers(0, 2**32 - 1), st.sampled_from(PARTS))
        def run(seed: int, parts: _Parts) -> None:
            check(self, self.examples(np.random.default_rng(seed), SIZE), parts)

        run()

    del over.__dict__["__wrapped__"]  # otherwise pytest would look for a fixture `examples`
    return over


class MetricsConformance(Conformance, is_suite=True):
    """`class TestAccuracy(MetricsConformance)`: test all requirements of a `solstice.Metrics`.

    Write `examples`, `build` and `reference`. Declare in `unsupported` the features that the metric
    does not have: "mask", "empty", "fixed_size" (it keeps its outputs), "order" (its result depends
    on their order), or the name of an optional check.

    Attributes:
        num_cases: number of random sets of examples for each law.
        tolerance: the largest allowed difference of equal values, absolute plus relative.
        may_be_nan: names of values that are undefined, hence NaN, for few examples.
    """

    num_cases: ClassVar[int] = 25
    tolerance: ClassVar[float] = 1e-5
    may_be_nan: ClassVar[Collection[str]] = ()

    @abstractmethod
    def examples(self, rng: np.random.Generator, size: int) -> Batch:
        """`size` random examples: a pytree of arrays with the examples on axis 0."""

    @abstractmethod
    def build(self, examples: Batch, mask: AnyArray | None = None) -> Metrics:
        """The metrics of the examples, as in a step; only of those with a true `mask`, if given."""

    @abstractmethod
    def reference(self, examples: Batch) -> Mapping[str, Any]:
        """The expected values of `compute()` by name, from NumPy or another library."""

    # Basic: what every metric must do

    def test_it_is_a_metric(self) -> None:
        """`compute` returns values by name, and `merge` a metric of the same class."""
        one = self._built(self._examples())
        assert isinstance(one, Metrics), f"metrics: build returned {one!r:.60}"
        assert type(one.merge(one)) is type(one), "metrics: merge must return the same class"
        names = list(one.compute())
        assert names, "metrics: compute returns nothing"
        assert all(isinstance(name, str) for name in names), f"metrics: the names are {names}"

    @for_cases
    def test_it_agrees_with_its_reference(self, examples: Batch, parts: _Parts) -> None:
        """`compute` over all examples equals the reference."""
        found, expected = self._computed(self._built(examples)), self.reference(examples)
        assert expected, "reference: it returns nothing"
        missing = expected.keys() - found.keys()
        assert not missing, f"reference: compute does not return {sorted(missing)}"
        self._alike({name: found[name] for name in expected}, expected, "reference")

    @for_cases
    def test_merge_is_associative(self, examples: Batch, parts: _Parts) -> None:
        """`(a.merge(b)).merge(c)` equals `a.merge(b.merge(c))`."""
        a, b, c = map(self._built, _cut(examples, (5, 5, 6)))
        left, right = a.merge(b).merge(c), a.merge(b.merge(c))
        self._alike(self._computed(left), self._computed(right), "associativity")

    @rests_on("test_merge_is_associative")
    @for_cases
    def test_splits_do_not_matter(self, examples: Batch, parts: _Parts) -> None:
        """Merged batches of any sizes equal all examples at once."""
        merged = _merged(map(self._built, _cut(examples, parts)))
        whole = self._computed(self._built(examples))
        self._alike(self._computed(merged), whole, f"batches of {parts}")

    def test_it_works_compiled(self) -> None:
        """`build` and `merge` have the same results under `jax.jit`."""
        a, b = _cut(self._examples(), (8, 8))
        alone = self.build(a).merge(self.build(b))
        compiled = jax.jit(lambda one, other: self.build(one).merge(self.build(other)))(a, b)
        self._alike(self._computed(compiled), self._computed(alone), "compiled")

    def test_counts_are_exact(self) -> None:
        """Counts are integers, because float32 stops counting at 2^24."""
        rng = np.random.default_rng(0)
        built = [self._built(self.examples(rng, size)) for size in (1, 3, 8, 16) * 3]
        columns = zip(*(map(np.asarray, _tree.leaves(one)) for one in built), strict=True)
        for (path, leaf), column in zip(_tree.leaves_by_path(built[0]), columns, strict=True):
            if not jnp.issubdtype(leaf.dtype, jnp.floating) or not self._adds_up(built[0], path):
                continue
            values = np.concatenate([np.ravel(value).astype(np.float64) for value in column])
            whole = np.all(values == np.floor(values)) and len(np.unique(values)) > 2
            assert not whole, (
                f"exact counts: `{path}` counts in {leaf.dtype}, which stops at 2^24; "
                f"write `solstice.metrics.Counts({{name: jnp.sum(...)}})`"
            )

    @for_cases
    def test_nothing_is_nan(self, examples: Batch, parts: _Parts) -> None:
        """No value is NaN for a single example or an absent class."""
        for part in _cut(examples, parts):
            for name, value in self._computed(self._built(part)).items():
                nan = name not in self.may_be_nan and np.any(np.isnan(value))
                assert not nan, f"no NaN: {name!r} is {value} of {_length(part)} examples"

    def test_a_promise_not_to_raise_is_kept(self) -> None:
        """With `can_raise = False`, `compute` takes NumPy arrays of any values."""
        one = self._built(self._examples())
        if may_raise(one):
            pytest.skip("`can_raise` is True, so `compute` is called in each epoch")
        here = jax.device_get(one)
        self._alike(self._computed(here), self._computed(one), "NumPy arrays")
        for value in (0, 1, np.nan, np.inf):
            filled = _tree.map(lambda leaf, value=value: _filled(leaf, value), here)
            with np.errstate(all="ignore"):
                self._computed(filled)

    def test_a_promise_to_compute_all_members_is_kept(self) -> None:
        """With `is_vectorized = True`, `compute` of several members has the values of each."""
        each = [jax.device_get(self._built(part)) for part in _cut(self._examples(), (8, 8))]
        if not takes_members(each[0]):
            pytest.skip("`is_vectorized` is False, so `compute` is called for each member")
        both = self._computed(_tree.map(lambda *leaves: np.stack(leaves), *each))
        for member, one in enumerate(each):
            values = {name: np.asarray(value)[member] for name, value in both.items()}
            self._alike(values, self._computed(one), f"member {member} of two")

    # Features

    @feature("order")
    @rests_on("test_splits_do_not_matter")
    @for_cases
    def test_order_does_not_matter(self, examples: Batch, parts: _Parts) -> None:
        """The order of examples and of merges does not change the values."""
        whole = self._computed(self._built(examples))
        shuffled = _tree.map(lambda leaf: leaf[::-1], examples)
        batches = list(map(self._built, _cut(shuffled, parts)))
        self._alike(self._computed(_merged(batches[::-1])), whole, "order")

    @feature("empty")
    @for_cases
    def test_empty_is_the_identity(self, examples: Batch, parts: _Parts) -> None:
        """A merge with `metrics.empty()` on either side changes nothing."""
        one: Any = self._built(examples)
        alone = self._computed(one)
        self._alike(self._computed(one.merge(one.empty())), alone, "identity")
        self._alike(self._computed(one.empty().merge(one)), alone, "identity")

    @feature("mask")
    @for_cases
    def test_masked_examples_do_not_count(self, examples: Batch, parts: _Parts) -> None:
        """Examples with a false mask have no effect."""
        mask = np.arange(SIZE) % 3 > 0
        kept = self._built(_tree.map(lambda leaf: leaf[mask], examples))
        masked = self._built(examples, mask)
        self._alike(self._computed(masked), self._computed(kept), "mask")
        none = self._built(examples, np.zeros(SIZE, bool))
        for merged in (kept.merge(none), none.merge(kept)):
            self._alike(self._computed(merged), self._computed(kept), "a mask of nothing")

    @feature("fixed_size")
    @rests_on("test_splits_do_not_matter")
    def test_it_is_a_carry_of_scan(self) -> None:
        """`merge` keeps shapes and dtypes, so that a compiled loop can carry the metrics."""
        examples = self._examples()
        batches = _tree.map(lambda leaf: leaf.reshape(4, 4, *leaf.shape[1:]), examples)

        def step(total: Metrics, batch: Batch) -> tuple[Metrics, None]:
            return total.merge(self.build(batch)), None

        first = self.build(_tree.row(batches, 0))
        rest = _tree.map(lambda leaf: leaf[1:], batches)
        total, _ = jax.lax.scan(step, first, rest)
        self._alike(self._computed(total), self._computed(self._built(examples)), "scan")

    # Optional: declared by name in `unsupported`

    @optional
    def test_many_batches_do_not_overflow(self) -> None:
        """Each value of 2^40 equal batches is that of one batch, or 2^40 times that."""
        if "fixed_size" in self.unsupported:
            pytest.skip("it grows with its batches")
        few = self._built(self._examples())
        double = jax.jit(lambda total: total.merge(total))
        many = few
        for _ in range(40):
            many = double(many)
        alone = self._computed(few)
        for name, value in self._computed(many).items():
            close = [
                np.allclose(value, alone[name] * scale, self.tolerance, self.tolerance)
                for scale in (1.0, 2.0**40)
            ]
            assert any(close) or name in self.may_be_nan, (
                f"many batches: {name!r} is {alone[name]} of one batch, and {value} of 2^40 equal "
                f"ones; count in `solstice.metrics.Counts`, and add up in `Totals`"
            )

    @optional
    def test_it_works_sharded(self) -> None:
        """Examples that are sharded over devices give the same values as on one device."""
        self._sharded(None)

    @optional
    def test_it_works_on_explicit_axes(self) -> None:
        """As sharded, on a mesh with Explicit axes, where the sharding is part of the type."""
        self._sharded(jax.sharding.AxisType.Explicit)

    @optional
    @rests_on("test_splits_do_not_matter", "test_it_works_compiled")
    def test_steps_give_the_same_on_a_mesh(self) -> None:
        """A Trainer with `mesh="all"` computes the values of one device, over unequal batches."""
        batches = _cut(self._examples(), (8, 8))
        batches += _cut(batches[0], (3, 5))

        def run(trainer: Trainer) -> Mapping[str, Any]:
            return trainer.validate(_Measured(jnp.zeros(()), type(self).build, self), batches)

        same_on_a_mesh(run, self.tolerance)

    def _sharded(self, axis_type: jax.sharding.AxisType | None) -> None:
        count = next((n for n in (16, 8, 4, 2) if n <= jax.device_count()), 1)
        if count == 1:
            pytest.skip("there is one device; set XLA_FLAGS")
        types = {} if axis_type is None else {"axis_types": (axis_type,)}
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("batch",), **types)
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
        examples = self._examples()
        alone = self._computed(self.build(examples))
        spread = self._computed(jax.jit(self.build)(jax.device_put(examples, rows)))
        self._alike(spread, alone, f"{count} devices")

    def _examples(self) -> Batch:
        return self.examples(np.random.default_rng(0), SIZE)

    def _built(self, examples: Batch, mask: AnyArray | None = None) -> Metrics:
        """The result of `build`, compiled for speed; `test_it_works_compiled` compares the two."""
        build = self._once("build", lambda: jax.jit(functools.partial(type(self).build, self)))
        return build(examples) if mask is None else build(examples, mask)

    def _adds_up(self, one: Metrics, path: str) -> bool:
        """Whether `merge` adds this leaf: merging a metric with itself doubles it."""
        doubled = dict(_tree.leaves_by_path(one.merge(one)))[path]
        single = dict(_tree.leaves_by_path(one))[path]
        return doubled.shape == single.shape and bool(np.array_equal(doubled, 2 * single))

    def _computed(self, metrics: Metrics) -> dict[str, Any]:
        return {name: np.asarray(value) for name, value in metrics.compute().items()}

    def _alike(self, one: Mapping[str, Any], other: Mapping[str, Any], what: str) -> None:
        assert one.keys() == other.keys(), f"{what}: {sorted(one)} and {sorted(other)}"
        for name in one:
            same = np.shape(one[name]) == np.shape(other[name]) and np.allclose(
                one[name], other[name], self.tolerance, self.tolerance, equal_nan=True
            )
            assert same, f"{what}: {name!r} is {one[name]} and {other[name]}"


class _Measured(Experiment):
    """An Experiment whose evaluation returns the metrics of a suite."""

    state: Array
    build: Callable[[Any, Batch], Metrics] = eqx.field(static=True)
    suite: MetricsConformance = eqx.field(static=True)

    def eval_step(self, batch: Batch) -> tuple[Self, Metrics]:
        return self, self.build(self.suite, batch)

    train_step = eval_step


def _filled(leaf: Any, value: float) -> Any:
    is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
    return np.full_like(leaf, value if is_float or np.isfinite(value) else np.iinfo(leaf.dtype).max)


def _cut(examples: Batch, parts: _Parts) -> list[Batch]:
    ends = np.cumsum(parts)
    return [
        _tree.map(lambda leaf, start=end - size, end=end: leaf[start:end], examples)
        for end, size in zip(ends, parts, strict=True)
    ]


def _merged(metrics: Iterable[Metrics]) -> Metrics:
    return functools.reduce(lambda total, one: total.merge(one), metrics)


def _length(examples: Batch) -> int:
    return len(_tree.leaves(examples)[0])
