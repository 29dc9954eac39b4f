"""The digests of arrays: each bit counts, wherever an array lies and however it is read."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import solstice
from solstice._engine._hash import hashed, hashes

pytestmark = pytest.mark.bits


def mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser "lowbias32", in NumPy."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def oracle(words: np.ndarray) -> int:
    words = words.reshape(-1)
    keys = np.arange(len(words), dtype=np.uint32) * np.uint32(0x9E3779B9)
    return int(mixed(words ^ keys).sum(dtype=np.uint32))


def test_the_digest_is_that_of_a_plain_loop_over_the_words():
    draw = np.random.default_rng(0)
    shapes = [(), (0, 3), (5,), (4099,), (130, 77), (3, 3, 16, 40), (1, 4100)]
    arrays = [np.asarray(draw.normal(size=shape), np.float32) for shape in shapes]
    expected = [oracle(array.reshape(-1).view(np.uint32)) for array in arrays]
    given = [jnp.asarray(array) for array in arrays]
    for by_slices in (True, False):  # on one device, and on several
        found = jax.jit(lambda x, how=by_slices: hashes(x, by_slices=how))(given)
        assert found.tolist() == expected
    assert hashed(given).tolist() == expected


TYPES = ["bool", "int8", "bfloat16", "float32", "float8_e4m3fn"]


@pytest.mark.parametrize("name", TYPES)
def test_each_bit_of_each_number_counts(name: str):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    word = np.dtype(f"u{dtype.itemsize}")
    draw = np.random.default_rng(0)
    base = draw.integers(2 if name == "bool" else 1 << (8 * word.itemsize), size=3).astype(word)
    bits = 1 if name == "bool" else 8 * word.itemsize
    flips = [np.zeros(3, word)]
    for place in range(3):
        flips += [np.eye(3, dtype=word)[place] << word.type(bit) for bit in range(bits)]
    arrays = jnp.asarray(np.stack([base ^ flip for flip in flips]).view(dtype))
    one = jax.vmap(lambda x: hashes([x], by_slices=True)[0])
    assert len(set(one(arrays).tolist())) == len(flips)


def test_words_that_are_not_numbers_of_32_bits():
    key = jax.random.key(3)
    data = np.asarray(jax.random.key_data(key))
    z = np.array([1 - 2j, complex(-0.0, np.nan)], np.complex64)
    four = jnp.asarray([1, -1, 7]).astype("int4")
    found = hashed([key, jnp.asarray(z), four, jnp.asarray(z[::-1].copy())]).tolist()
    assert found[0] == oracle(data)
    assert found[1] == oracle(z.view(np.uint32))
    assert len(set(found)) == 4


def test_changes_that_cancel_in_a_sum_do_not_cancel_here():
    x = np.arange(1, 9, dtype=np.float32)
    nan = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    signs = x * np.where(np.arange(8) < 2, -1, 1).astype(np.float32)
    swapped = x[[1, 0, *range(2, 8)]]
    changed = [x, signs, swapped, x + 0 * nan[0], np.zeros(8, np.float32), -np.zeros(8, np.float32)]
    changed += [np.full(8, nan[0]), np.full(8, nan[1]), np.zeros(7, np.float32)]
    assert len(set(hashed([jnp.asarray(one) for one in changed]).tolist())) == len(changed) - 1


class Net(solstice.Experiment):
    weight: Any
    key: Any
    count: Any

    def __init__(self) -> None:
        self.weight = jnp.ones((3, 2))
        self.key = jax.random.key(0)
        self.count = 0

    def train_step(self, batch: Any) -> Any:
        key, now = jax.random.split(self.key)
        loss = jnp.mean((batch["x"] @ self.weight - batch["y"]) ** 2)
        noise = 0.01 * jax.random.normal(now, self.weight.shape)
        weight = self.weight * 0.9 + noise + batch["x"].mean()
        new = solstice.replace(self, weight=weight, key=key, count=self.count + 1)
        return new, {"loss": loss}

    def eval_step(self, batch: Any) -> Any:
        return self, {"loss": jnp.mean(batch["y"])}


class Eager(Net):
    def train_step(self, batch: Any) -> Any:
        assert float(batch["x"].sum()) < 1e9  # reads a value
        return EAGER_STEP(self, {name: batch[name] for name in "xy"})


EAGER_STEP = jax.jit(Net.train_step)


def data(**options: Any) -> Any:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(22, 3)), draw.normal(size=(22, 2))
    found = {"x": x.astype(np.float32), "y": y.astype(np.float32), "name": np.array(["a"] * 22)}
    if options:
        del found["name"]
    return solstice.data.batches(found, 4, shuffle=True, seed=1, **options)


class Reads(solstice.Callback):
    """Keeps the digests of each step, and checks those of some against the arrays."""

    needs = ("digests",)

    def __init__(self, every: int = 1, *, checks: bool = False) -> None:
        self.every = every
        self.needs = ("digests", "experiment", "batch", "outputs") if checks else ("digests",)
        self.seen: dict[int, dict[str, int]] = {}

    def on_epoch_start(self, record: solstice.Record) -> None:
        if record.mode == "train":
            self.seen.setdefault(record.step, {}).update(record.digests.at(record.step))

    def on_call_end(self, record: solstice.Record) -> None:
        if record.mode == "train":
            for step in record.digests.steps:
                self.seen[step] = record.digests.at(step)

    def on_step_end(self, record: solstice.Record) -> None:
        if record.mode != "train" or len(self.needs) == 1:
            return
        found = record.digests.at(record.step)
        assert found["batch/x"] == oracle(record.batch["x"].view(np.uint32))
        assert found["outputs/loss"] == oracle(np.asarray(record.outputs["loss"]).view(np.uint32))
        weight = np.asarray(record.experiment.weight)
        assert found["state/weight"] == oracle(weight.view(np.uint32))
        assert found["state/count"] == oracle(np.uint32(record.step))


def digests(callback: Reads, experiment: Any = None, train_ds: Any = None, **options: Any) -> Any:
    trainer = solstice.Trainer([callback], **options)
    trainer.fit(experiment or Net(), train_ds or data(), num_epochs=2)
    return callback.seen


@pytest.fixture(scope="module")
def whole() -> dict[int, dict[str, int]]:
    return digests(Reads())


def test_the_digests_of_a_run_do_not_depend_on_how_it_is_cut_or_fed(whole: Any):
    assert sorted(whole) == list(range(13))
    assert {*whole[0]} == {"state/weight", "state/key", "state/count"}
    assert {*whole[5]} == {*whole[0], "batch/x", "batch/y", "outputs/loss"}
    assert digests(Reads(checks=True)) == whole  # calls of one step each
    assert digests(Reads(), train_ds=data(on_device=True)) == whole
    with pytest.warns(UserWarning, match="cannot be compiled"):
        eager = digests(Reads(checks=True), Eager())
    assert eager[0] == whole[0]
    assert [{*row} for row in eager.values()] == [{*row} for row in whole.values()]


def test_the_state_has_digests_at_multiples_of_every(whole: Any):
    some = digests(Reads(5), steps_per_call=4)
    for step, found in some.items():
        due = step % 5 == 0 or step == 6  # an epoch starts there
        assert found == {n: x for n, x in whole[step].items() if due or not n.startswith("state")}


def test_digests_are_those_up_to_the_step_that_stops():
    class Stops(Reads):
        def on_step_end(self, record: solstice.Record) -> None:
            if record.step == 3:
                raise solstice.Stop

        def on_epoch_end(self, record: solstice.Record) -> None:
            assert list(record.digests.steps) == [1, 2, 3]

    solstice.Trainer([Stops()]).fit(Net(), data(), num_epochs=1)


class Convolves(Net):
    """A step whose calls have no loop: up to eight of them make a block."""

    def train_step(self, batch: Any) -> Any:
        image = batch["x"][None, None, :, :] + jnp.zeros((1, 1, 1, 1))
        kernel = self.weight[None, None, :2, :2]
        weight = self.weight + jax.lax.conv(image, kernel, (1, 1), "VALID").mean()
        new = solstice.replace(self, weight=weight, count=self.count + 1)
        return new, {"loss": weight.sum()}


def test_calls_of_one_step_count_the_steps_before_them():
    whole, some = digests(Reads(), Convolves()), digests(Reads(4), Convolves())
    assert [step for step, row in some.items() if "state/weight" in row] == [0, 4, 6, 8, 12]
    assert all(whole[step].items() >= row.items() for step, row in some.items())
