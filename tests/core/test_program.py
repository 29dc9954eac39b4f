"""What a step must take and give back, and the error that says which part does not."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice

X, Y = np.ones((4, 3), np.float32), np.arange(4, dtype=np.float32)


class Base(solstice.Experiment):
    w: Any
    name: str = "start"

    def train_step(self, batch: Any) -> Any:
        x, y = batch
        return solstice.replace(self, w=self.w + x.sum()), {"mean": y.mean()}

    def eval_step(self, batch: Any) -> Any:
        return self, {}


def fit(cls: type[Base], batch: Any = (X, Y), w: Any = None, **options: Any) -> Any:
    start = cls(jnp.zeros(()) if w is None else w)
    return solstice.Trainer().fit(start, [batch, batch], **options)


@pytest.mark.parametrize("batch", [(X, Y, Y), X, {"a": X, "b": Y, "c": Y}, (X,)])
def test_a_batch_that_cannot_be_unpacked_is_an_error_of_the_data(batch: Any):
    with pytest.raises(solstice.DataError, match=r"train_step cannot unpack.*f32\[4,3\]"):
        fit(Base, batch)


def test_a_dict_that_is_unpacked_into_its_names_is_an_error_of_the_data():
    with pytest.raises(solstice.DataError, match=r'its names.*batch\["x"\]'):
        fit(Base, {"x": X, "y": Y})


def test_another_error_of_a_step_is_the_users_and_tells_the_batch():
    class Broken(Base):
        def train_step(self, batch: Any) -> Any:
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        fit(Broken)
    assert any("f32[4,3]" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (lambda self: self, "returned a Odd"),
        (lambda self: (self,), "a tuple of 1"),
        (lambda self: None, "returned None"),
        (lambda self: ({}, self), "the first thing it returned is a dict"),
    ],
)
def test_a_step_must_return_a_pair(result: Any, found: str):
    class Odd(Base):
        def train_step(self, batch: Any) -> Any:
            return result(self)

    with pytest.raises(solstice.ExperimentError, match=f"Odd.train_step.*{found}.*return solstice"):
        fit(Odd)


def test_an_evaluation_that_cannot_run_is_told_before_anything_trains():
    class Odd(Base):
        def eval_step(self, batch: Any) -> Any:
            return 3

    trainer = solstice.Trainer()
    start = Odd(jnp.zeros(()))
    with pytest.raises(solstice.ExperimentError, match=r"Odd\.eval_step"):
        trainer.fit(start, [(X, Y)], [(X, Y)])
    assert trainer.experiment is start


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w.astype(jnp.bfloat16), r"`\.w`: it was float32\[\].*bfloat16\[\]"),
        (lambda w: w[None], r"`\.w`: it was float32\[\].*float32\[1\]"),
        (lambda w: {"a": w}, r"structure of Drifting at `\.w`"),
        (lambda w: "text", r"`\.w`|\.w"),
    ],
)
def test_a_leaf_that_drifts_is_named(change: Any, named: str):
    class Drifting(Base):
        def train_step(self, batch: Any) -> Any:
            return solstice.replace(self, w=change(self.w)), {}

    with pytest.raises(solstice.ExperimentError, match=named):
        fit(Drifting)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Static:
    size: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Labelled:
    x: Any
    label: str = dataclasses.field(metadata={"static": True})


class Kind(Base):
    kind: str = eqx.field(static=True, default="old")


@pytest.mark.parametrize(
    ("fields", "change", "named"),
    [
        ({}, {"kind": "new"}, r"`\.kind`: it was 'old' and came back as 'new'.*a copy that it"),
        ({"w": None}, {"w": np.zeros(2)}, r"`\.w`: it was None and .* as float64\[2\]\..*setup"),
        ({"w": X}, {"w": None}, r"`\.w`: it was an array and came back as None"),
        ({"w": [X]}, {"w": (X,)}, r"`\.w`: it was \[an array\] and came back as \(array"),
        ({"w": {"a": X}}, {"w": {"a": X, "b": X}}, r"`\.w\['b'\]`: it was not there and"),
        ({"w": Static(1)}, {"w": Static(2)}, r"`\.w\.size`: it was 1 and came back as 2"),
        (
            {"w": [Labelled(X, "a")]},
            {"w": [Labelled(X, "b")]},
            r"`\.w\[0\]\.label`: it was 'a' and came back as 'b'",
        ),
        (
            {"w": jax.tree_util.Partial(jnp.sin)},
            {"w": jax.tree_util.Partial(jnp.cos)},
            r"`\.w`: it was .*Partial\(.* and came back as .*Partial\(",
        ),
    ],
)
@pytest.mark.parametrize("method", ["train_step", "eval_step"])
def test_a_structure_that_changes_is_named_with_what_it_was(
    fields: Any, change: Any, named: str, method: str
):
    class Changing(Kind):
        pass

    setattr(Changing, method, lambda self, batch: (solstice.replace(self, **change), {}))
    start = Changing(**{"w": jnp.zeros(()), **fields})
    run = solstice.Trainer().fit if method == "train_step" else solstice.Trainer().test
    with pytest.raises(solstice.ExperimentError, match=f"{method} changed.*Changing at {named}"):
        run(start, [(X, Y)])


def test_a_constant_that_changes_is_named():
    class Renaming(Base):
        def train_step(self, batch: Any) -> Any:
            return solstice.replace(self, name="end"), {}

    with pytest.raises(solstice.ExperimentError, match=r"`\.name`.*'start'.*'end'"):
        fit(Renaming)


def test_a_number_that_a_step_changes_becomes_an_array():
    class Counting(Base):
        def train_step(self, batch: Any) -> Any:
            return solstice.replace(self, w=self.w + 1), {}

    assert int(fit(Counting, w=0).w) == 2


def test_a_number_may_start_at_infinity_and_take_the_type_of_the_step():
    class Best(Base):
        def train_step(self, batch: Any) -> Any:
            return solstice.replace(self, w=jnp.minimum(self.w, batch[1].max())), {}

    best = fit(Best, w=float("inf")).w
    assert best == 3
    assert best.dtype == jnp.float32


def test_a_number_that_sets_a_shape_or_a_branch_stays_a_number():
    class Configured(Base):
        size: int = 2
        twice: bool = True
        count: int = 0

        def train_step(self, batch: Any) -> Any:
            grown = jnp.ones(self.size).sum() * (2 if self.twice else 1)
            return solstice.replace(self, w=self.w + grown, count=self.count + 1), {}

    trained = fit(Configured)
    assert (float(trained.w), trained.size, trained.twice, int(trained.count)) == (8, 2, True, 2)


def test_a_new_value_of_a_number_traces_nothing_again():
    traces = []

    class Scaled(Base):
        rate: float = 1.0

        def train_step(self, batch: Any) -> Any:
            traces.append(1)
            return solstice.replace(self, w=self.w + self.rate), {}

    for rate in (0.5, 0.25):
        trained = solstice.Trainer().fit(Scaled(jnp.zeros(()), rate=rate), [(X, Y)])
        assert float(trained.w) == rate
        compiled, traces[:] = len(traces), []
    assert compiled <= 1  # to look at the types of the new value, and not to compile


def test_a_second_fit_compiles_nothing():
    traces = []

    class Watched(Base):
        def train_step(self, batch: Any) -> Any:
            traces.append(1)
            return solstice.replace(self, w=self.w + batch[0].sum()), {"mean": batch[1].mean()}

    fit(Watched)
    first = len(traces)
    fit(Watched, w=jnp.ones(()))
    assert first > 0
    assert len(traces) == first


def test_a_step_is_traced_once_and_again_under_other_settings_of_jax():
    traces = []

    class Watched(Base):
        def train_step(self, batch: Any) -> Any:
            traces.append(1)
            x, y = batch
            return solstice.replace(self, w=self.w + (x @ x.T).sum()), {"mean": y.mean()}

    fit(Watched)
    assert len(traces) == 1
    with jax.default_matmul_precision("float32"):
        fit(Watched)
    assert len(traces) == 2


def test_an_unhashable_static_field_trains():
    class Listed(Base):
        sizes: list[int] = eqx.field(static=True, default_factory=lambda: [1, 2])

    assert float(fit(Listed).w) == 24


def test_text_in_a_batch_stays_with_the_callbacks():
    seen = []

    class Spy(solstice.Callback):
        needs = ("batch",)

        def on_step_end(self, record: solstice.Record) -> None:
            seen.append(record.batch[1])

    class TakesText(Base):
        def train_step(self, batch: Any) -> Any:
            x, names = batch
            assert names is None
            return solstice.replace(self, w=self.w + x.sum()), {}

    solstice.Trainer([Spy()]).fit(TakesText(jnp.zeros(())), [(X, "first"), (X, "second")])
    assert seen == ["first", "second"]


def test_typed_keys_and_numpy_leaves_train():
    class Keyed(Base):
        key: Any = None

        def train_step(self, batch: Any) -> Any:
            key, sub = jax.random.split(self.key)
            w = self.w + jax.random.normal(sub, self.w.shape)
            return solstice.replace(self, w=w, key=key), {}

    start = Keyed(np.zeros(3, np.float32), key=jax.random.key(0))
    trained = solstice.Trainer().fit(start, [(X, Y)])
    key, sub = jax.random.split(jax.random.key(0))
    np.testing.assert_allclose(trained.w, jax.random.normal(sub, (3,)), rtol=1e-6)
    assert trained.key == key


def test_numbers_that_take_each_others_type_for_ever_are_named():
    class Swaps(Base):
        other: Any = 1

        def train_step(self, batch: Any) -> Any:
            return solstice.replace(self, w=self.other, other=self.w), {}

    with pytest.raises(solstice.ExperimentError, match=r"changed the type of `.w`"):
        fit(Swaps, w=2.5)
