"""Runs whose arrays lie on several devices, or in several processes."""

import os
import re
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import solstice
from solstice import _tree
from solstice._engine import _ownership

on_two = pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
ROWS = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
BATCHES = [ROWS[start : start + 4] for start in range(0, 20, 4)]


class Noisy(solstice.Experiment):
    """Weights, and keys of each kind that a step draws from and replaces."""

    w: jax.Array
    typed: jax.Array
    raw: jax.Array
    many: jax.Array
    count: int = 0

    def train_step(self, batch: Any) -> Any:
        typed, draw = jax.random.split(self.typed)
        raw, other = jax.random.split(self.raw)
        noise = jax.random.normal(draw, self.w.shape) + jax.random.normal(other, self.w.shape)
        many = jax.vmap(lambda key: jax.random.fold_in(key, self.count))(self.many)
        w = self.w - 0.1 * (batch.mean(axis=0) + 0.01 * noise)
        return (
            solstice.replace(self, w=w, typed=typed, raw=raw, many=many, count=self.count + 1),
            {"mean": w.mean()},
        )

    def eval_step(self, batch: Any) -> Any:
        return self, {"mean": (batch @ self.w).mean()}


def noisy(impl: str = "threefry2x32") -> Noisy:
    key = jax.random.key(3, impl=impl)
    return Noisy(jnp.arange(8.0), key, jax.random.PRNGKey(4), jax.random.split(key, 8))


def placed(experiment: Noisy, num_devices: int, *, is_split: bool) -> Noisy:
    """The Experiment on some devices, its arrays of 8 split over them or copied to each."""
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("data",))
    rows = PartitionSpec("data" if is_split else None)

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        splits = leaf.ndim > 0 and leaf.shape[0] == 8
        return jax.device_put(leaf, NamedSharding(mesh, rows if splits else PartitionSpec()))

    return jax.tree.map(place, experiment)


def numbers(tree: Any) -> list[Any]:
    """Copies of the numbers of a tree, which nothing can change."""
    plain = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
             for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]  # fmt: skip
    return [np.array(x) for x in plain]


class Keeps(solstice.Callback):
    """Keeps all that it is given, beside copies of the numbers at that moment."""

    needs = ("experiment", "batch")
    can_stop = False

    def __init__(self, every: int | None) -> None:
        self.every = every
        self.kept: list[tuple[Any, list[Any]]] = []

    def keep(self, tree: Any) -> None:
        self.kept.append((tree, numbers(tree)))

    def on_fit_start(self, record: solstice.Record) -> None:
        self.keep(record.experiment)

    def on_step_end(self, record: solstice.Record) -> None:
        self.keep((record.experiment, record.batch))

    def on_epoch_end(self, record: solstice.Record) -> None:
        self.keep(record.experiment)
        if record.mode == "train":
            self.keep(record.snapshot.experiment)

    def on_fit_end(self, record: solstice.Record) -> None:
        self.keep(record.experiment)


class KeepsCalls(Keeps):
    """Keeps what may be saved after each call too."""

    def on_call_end(self, record: solstice.Record) -> None:
        if record.mode == "train":
            self.keep(record.snapshot.experiment)


def check_that_nothing_handed_out_changes(
    num_devices: int,
    impl: str,
    every: int | None,
    is_split: bool,
    keeps_calls: bool,
    calls: int,
    is_large: bool = False,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if is_large:  # only what others hold is copied
            patch.setattr(_ownership, "_SMALL_BYTES", -1)
        _check_that_nothing_handed_out_changes(
            num_devices, impl, every, is_split, keeps_calls, calls
        )


def _check_that_nothing_handed_out_changes(
    num_devices: int, impl: str, every: int | None, is_split: bool, keeps_calls: bool, calls: int
) -> None:
    start = noisy(impl)
    on_devices = placed(start, num_devices, is_split=is_split)
    keeper = (KeepsCalls if keeps_calls else Keeps)(every)
    recorder = solstice.callbacks.FlightRecorder("unused", every=1)
    trainer = solstice.Trainer([keeper, recorder], steps_per_call=calls)
    results: list[Any] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not split batches")
        for experiment in (on_devices, on_devices, start):
            keeper.keep(experiment)
            trained = trainer.fit(experiment, BATCHES, BATCHES[:2], num_epochs=2)
            results += [trained, trainer.experiment]
            keeper.keep(results[-2:])
    for tree, then in keeper.kept:
        for now, was in zip(numbers(tree), then, strict=True):
            np.testing.assert_array_equal(now, was)
    for one, other in zip(numbers(results[0]), numbers(results[2]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@on_two
@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@settings(max_examples=4, deadline=None)
@given(
    every=st.sampled_from([None, 1, 3]),
    keeps_calls=st.booleans(),
    calls=st.sampled_from([1, 4]),
    is_large=st.booleans(),
)
def test_nothing_that_a_run_hands_out_is_deleted_or_changed(
    impl: str, every: int | None, is_split: bool, keeps_calls: bool, calls: int, is_large: bool
):
    check_that_nothing_handed_out_changes(2, impl, every, is_split, keeps_calls, calls, is_large)


def in_a_process(code: str, devices: int, *more: str) -> subprocess.Popen[str]:
    """Runs `code` in a process of its own, since a process has the devices that it began with."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *more],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


ON_EIGHT = """\
import test_devices
for impl, is_split, every, calls in [
    ("threefry2x32", True, 1, 4), ("threefry2x32", False, None, 4), ("rbg", False, 3, 1)
]:
    test_devices.check_that_nothing_handed_out_changes(8, impl, every, is_split, True, calls)
"""


@pytest.mark.slow
def test_nothing_that_a_run_on_eight_devices_hands_out_is_deleted_or_changed():
    process = in_a_process(ON_EIGHT, 8)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed[-3000:]


@on_two
@pytest.mark.parametrize("is_split", [False, True])
def test_a_copy_lies_where_the_original_does_and_shares_nothing(is_split: bool):
    arrays = [x for x in jax.tree.leaves(placed(noisy(), 2, is_split=is_split)) if hasattr(x, "at")]
    copied = _tree.copies(arrays)
    assert [x.sharding for x in copied] == [x.sharding for x in arrays]
    assert [x.dtype for x in copied] == [x.dtype for x in arrays]
    for one, other in zip(numbers(arrays), numbers(copied), strict=True):
        np.testing.assert_array_equal(one, other)
    for array in copied:
        array.delete()
    assert not any(array.is_deleted() for array in arrays)
    numbers(arrays)  # which fails if the memory of a key was shared


@on_two
def test_an_experiment_on_several_devices_is_named_once_with_what_to_write():
    on_devices = placed(noisy(), 2, is_split=False)
    with pytest.warns(UserWarning, match="does not split batches") as caught:
        solstice.Trainer().fit(on_devices, BATCHES, BATCHES)
    (warning,) = caught
    assert warning.filename == __file__
    text = str(warning.message)
    assert "each of the 2 devices runs every step in full" in text
    assert "`.w` and 4 more arrays of the Noisy" not in text  # `count` is a Python number
    for hint in re.findall(r"Trainer\(mesh=[^)]*\)", text):  # a warning would be an error here
        eval(hint, {"Trainer": solstice.Trainer}).fit(on_devices, BATCHES, BATCHES)


@on_two
def test_state_that_is_split_over_devices_is_named():
    with pytest.warns(UserWarning, match="all 2 devices compute each step on the whole batch"):
        solstice.Trainer().test(placed(noisy(), 2, is_split=True), BATCHES)


@on_two
@pytest.mark.parametrize("from_batch", [0, 2])
def test_batches_on_several_devices_are_named_once_and_give_the_right_numbers(from_batch: int):
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("data",)), PartitionSpec("data"))
    spread = [
        {"x": jax.device_put(x, sharding) if index >= from_batch else x}
        for index, x in enumerate([*BATCHES, ROWS[:2]])
    ]

    class OfDicts(Noisy):
        def train_step(self, batch: Any) -> Any:
            return super().train_step(batch["x"])

    start = OfDicts(*jax.tree.leaves(noisy()))
    with pytest.warns(UserWarning, match="copies each batch to the host") as caught:
        trained = solstice.Trainer().fit(start, spread, num_epochs=2)
    (warning,) = caught
    assert "the array `batch['x']` of the batch lies on 2 devices" in str(warning.message)
    on_host = solstice.Trainer().fit(start, jax.device_get(spread), num_epochs=2)
    np.testing.assert_array_equal(trained.w, on_host.w)


ONE_OF_TWO = """\
import sys
import jax, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import solstice, test_devices
from solstice import _tree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
rows = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
whole = np.arange(8, dtype=np.float32)
array = jax.make_array_from_callback((8,), rows, lambda index: whole[index])
(copied,) = _tree.copies([array])
assert copied.sharding == array.sharding
array.delete()
for shard in copied.addressable_shards:
    np.testing.assert_array_equal(shard.data, whole[shard.index])
trainer, batches = solstice.Trainer(), test_devices.BATCHES
noisy = test_devices.noisy()
for run in (trainer.fit, trainer.validate, trainer.test, trainer.predict):
    try:
        run(noisy, batches)
    except RuntimeError as error:
        assert "JAX runs in 2 processes" in str(error), error
    else:
        raise AssertionError(run)
"""


@pytest.mark.slow
def test_a_run_in_one_of_two_processes_is_refused():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    both = [in_a_process(ONE_OF_TWO, 2, address, str(index)) for index in (0, 1)]
    printed = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(printed)[-3000:]
