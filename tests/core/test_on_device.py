"""Data on the device: the bits, the history and the messages are those of batches from the host."""

import copy
import gc
import hashlib
import pickle
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from clocks import stopped
from hypothesis import example, given, settings
from hypothesis import strategies as st

import solstice
from solstice import _memory
from solstice._engine import BlockSize, Feeder, StagingBuffers, _block_size, _placement, _resident
from solstice.callbacks import Checkpoint, EarlyStopping, FlightRecorder, NaNGuard
from solstice.data import Masked, batches
from solstice.testing import Sgd

pytestmark = pytest.mark.bits

RNG = np.random.default_rng(0)
X = RNG.normal(size=(75, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 75).astype(np.int32)


class Net(solstice.Experiment):
    """A net with dropout, whose loss is a function of the weights, the batch and a key."""

    w: Any
    key: Any
    loss: Callable[..., Any]

    def train_step(self, batch: Any) -> Any:
        key, now = jax.random.split(self.key)
        loss, grad = jax.value_and_grad(self.loss)(self.w, batch, now)
        new = solstice.replace(self, w=self.w - 0.01 * grad, key=key)
        return new, {"loss": loss, "count": batch[1].shape[0]}

    def eval_step(self, batch: Any) -> Any:
        return self, {"loss": self.loss(self.w, batch, None)}

    def predict_step(self, batch: Any) -> Any:
        return batch[0] @ self.w


def dense(w: Any, batch: Any, key: Any) -> Any:
    x, y = batch[0].astype(jnp.float32), batch[1].astype(jnp.float32)
    if key is not None:
        x = x * jax.random.bernoulli(key, 0.8, x.shape).astype(x.dtype)
    return ((jnp.tanh(x @ w) - y[:, None]) ** 2).mean()


def reductions(w: Any, batch: Any, key: Any) -> Any:
    """Nothing but what XLA fuses with the reading of a batch."""
    x = batch[0].astype(jnp.float32)
    scaled = (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5)
    sines = jnp.log1p(jnp.abs(jnp.sin(x) * w[None, :, 1]).sum(1))
    return jnp.tanh((scaled * w[None, :, 0]).sum()) + sines.sum()


def products(w: Any, batch: Any, key: Any) -> Any:
    """A sum of products rounds otherwise if XLA computes some of them before the loop."""
    x = batch[0].astype(jnp.float32)
    return (jnp.sin(x) * 1.1 * x + w[None, :, 0]).sum()


def convolution(w: Any, batch: Any, key: Any) -> Any:
    x = batch[0].astype(jnp.float32)[:, None, :]
    return jnp.tanh(jax.lax.conv(x, w[:3, :1].reshape(1, 1, 3), (1,), "VALID") / 10).mean()


W = np.random.default_rng(1).normal(size=(5, 3))


def net(loss: Callable[..., Any] = dense, kind: type[Net] = Net) -> Net:
    return kind(jnp.asarray(W, jnp.float32), jax.random.key(7), loss)


def digest(experiment: Any) -> str:
    key = np.asarray(jax.random.key_data(experiment.key)).tobytes()
    return hashlib.sha256(np.asarray(experiment.w).tobytes() + key).hexdigest()


def fitted(
    on_device: bool,
    arrays: Any = (X, Y),
    size: int = 4,
    *,
    experiment: Any = None,
    callbacks: Any = (),
    num_epochs: int | None = 2,
    fit: Any = None,
    shuffle: bool = True,
    seed: int = 3,
    drop_last: bool = False,
    **options: Any,
) -> tuple[str, Any]:
    """The bits and the history of a run with validation."""
    trainer = solstice.Trainer(callbacks, **options)
    train = batches(
        arrays, size, shuffle=shuffle, seed=seed, drop_last=drop_last, on_device=on_device
    )
    val = batches(arrays, 10, on_device=on_device)
    found = trainer.fit(experiment or net(), train, val, num_epochs=num_epochs, **(fit or {}))
    return digest(found), trainer.history.rows


class Spy(solstice.Callback):
    """Looks at the steps of training."""

    modes = ("train",)

    def __init__(self, every: int, needs: tuple[str, ...]) -> None:
        self.every, self.needs = every, needs
        self.seen: list[Any] = []

    def on_step_end(self, record: solstice.Record) -> None:
        seen = {name: getattr(record, name) for name in self.needs}
        if "experiment" in seen:
            seen["experiment"] = digest(seen["experiment"])
        self.seen.append((record.step, record.num_examples, seen))


class SpyBefore(Spy):
    def on_step_start(self, record: solstice.Record) -> None:
        self.seen.append((record.step, record.epoch_step))


def same(one: Any, other: Any) -> bool:
    a, b = jax.tree.flatten(one), jax.tree.flatten(other)
    return a[1] == b[1] and all(
        type(x) is type(y) and np.array_equal(x, y) and np.asarray(x).dtype == np.asarray(y).dtype
        for x, y in zip(a[0], b[0], strict=True)
    )


# The bits


def one_batch(**given: Any) -> Any:
    """An example of epochs of one batch, which run in the loop of longer ones."""
    usual: dict[str, Any] = {"dtype": np.float32, "shuffle": False, "seed": 1, "drop_last": False}
    return example(**{**usual, "steps_per_call": None, "limit": None, **given})


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@one_batch(loss=reductions, size=4, shuffle=True, limit=1)
@one_batch(loss=products, size=75)
@one_batch(loss=products, size=80)
@given(
    loss=st.sampled_from([dense, reductions, products, convolution]),
    dtype=st.sampled_from([np.float32, np.float64, np.uint8, ml_dtypes.bfloat16, np.int64]),
    size=st.sampled_from([1, 4, 25, 75, 80]),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**32),
    drop_last=st.booleans(),
    steps_per_call=st.sampled_from([None, 1, 3, 32]),
    limit=st.sampled_from([None, 1, 5]),
)
def test_the_bits_and_the_history_are_those_of_batches_from_the_host(
    loss: Any,
    dtype: Any,
    size: int,
    shuffle: bool,
    seed: int,
    drop_last: bool,
    steps_per_call: int | None,
    limit: int | None,
):
    arrays = (10 * np.abs(X)).astype(dtype), Y
    options: dict[str, Any] = {
        "experiment": net(loss),
        "shuffle": shuffle,
        "seed": seed,
        "drop_last": drop_last and size <= len(X),
        "steps_per_call": steps_per_call,
        "limit_train_batches": limit,
        "limit_val_batches": limit,
    }
    assert fitted(True, arrays, size, **options) == fitted(False, arrays, size, **options)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("loss", [reductions, products])
def test_batches_so_large_that_each_is_a_call_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, loss: Any, on_device: bool
):
    arrays = 10 * np.abs(X[:8]), Y[:8]
    expected = fitted(False, arrays, experiment=net(loss))
    monkeypatch.setattr(_block_size, "BYTES_PER_CALL", 1)
    spy = Spy(1, ("outputs",))  # outputs count on the device too
    assert fitted(on_device, arrays, experiment=net(loss), callbacks=[spy]) == expected


@pytest.mark.parametrize("loss", [reductions, products])
def test_run_steps_of_one_batch_has_the_bits_of_a_run(loss: Any):
    for start in range(0, 72, 4):
        x, y = 10 * np.abs(X[start : start + 4]), Y[start : start + 4]
        trainer = solstice.Trainer()
        expected = trainer.fit(net(loss), batches((x, y), 4, on_device=True))
        found, metrics = solstice.run_steps(net(loss), (x[None], y[None]))
        assert digest(found) == digest(expected)
        assert float(metrics.compute()["loss"]) == trainer.history.rows[-1]["loss"]


spies = st.builds(
    lambda cls, every, needs: (cls, every, tuple(sorted(needs))),
    st.sampled_from([Spy, SpyBefore]),
    st.integers(1, 30),
    st.sets(st.sampled_from(["outputs", "batch", "experiment", "metrics"])),
)


@pytest.mark.slow
@settings(deadline=None, max_examples=8)
@given(
    st.lists(spies, max_size=2),
    st.sampled_from([None, 3, 7]),
    st.sampled_from([None, 8]),
    st.sampled_from([None, 1, 20, 33]),
)
def test_callbacks_see_the_same_records(
    chosen: Any, size: int | None, every: int | None, max_steps: int | None
):
    def found(on_device: bool) -> Any:
        callbacks = [kind(*arguments) for kind, *arguments in chosen]
        result = fitted(
            on_device,
            callbacks=callbacks,
            steps_per_call=size,
            val_every_n_steps=every,
            num_epochs=2,
            fit={"max_steps": max_steps},
        )
        return result, [c.seen for c in callbacks]

    assert same(found(True), found(False))


def test_an_epoch_is_one_call_and_one_for_the_smaller_last_batch():
    calls: list[int] = []

    class Calls(solstice.Callback):
        modes = ("train",)

        def on_call_end(self, record: solstice.Record) -> None:
            calls.append(record.epoch_step)

    solstice.Trainer([Calls()]).fit(
        net(), batches((X, Y), 4, shuffle=True, on_device=True), num_epochs=3
    )
    assert calls == [18, 19] * 3


def test_a_convolution_on_the_cpu_runs_one_step_a_call():
    def run(on_device: bool) -> Any:
        trainer = solstice.Trainer()
        data = batches((X, Y), 4, shuffle=True, on_device=on_device)
        return digest(trainer.fit(net(convolution), data)), trainer.explain()

    found, text = run(True)
    assert found == run(False)[0]
    assert "1 step a call, up to 8 calls at once" in text
    assert "compiled programs: 2" in text


def test_a_stop_within_a_call_leaves_what_that_step_left():
    class StopAt(solstice.Callback):
        def on_step_end(self, record: solstice.Record) -> None:
            if record.step == 7:
                raise solstice.Stop

    assert fitted(True, callbacks=[StopAt()]) == fitted(False, callbacks=[StopAt()])


@pytest.mark.parametrize("method", ["validate", "test"])
def test_evaluation_reads_the_device(method: str):
    def measured(on_device: bool) -> Any:
        data = batches((X, Y), 8, on_device=on_device)
        return getattr(solstice.Trainer(), method)(net(), data)

    assert measured(True) == measured(False)


def test_predictions_are_those_of_batches_from_the_host():
    def predicted(on_device: bool) -> Any:
        data = batches((X, Y), 8, on_device=on_device)
        return list(solstice.Trainer().predict(net(), data))

    found = predicted(True)
    assert len(found) == 10
    assert same(found, predicted(False))


class Reads(Net):
    """A step that JAX cannot trace."""

    def train_step(self, batch: Any) -> Any:
        if float(batch[0].sum()) > 1e9:
            raise AssertionError
        return super().train_step(batch)


@pytest.mark.filterwarnings("ignore:.*cannot be compiled")
def test_steps_that_cannot_be_compiled_are_fed_from_the_host():
    def run(on_device: bool) -> Any:
        trainer = solstice.Trainer()
        data = batches((X, Y), 40, shuffle=True, on_device=on_device)
        return digest(trainer.fit(net(kind=Reads), data, num_epochs=2)), trainer.explain()

    found, text = run(True)
    assert found == run(False)[0]
    assert "train_ds is fed from the host: the step cannot be compiled" in text


def test_masked_batches_keep_their_masks():
    mask = RNG.random(75) < 0.6

    def run(on_device: bool) -> Any:
        model = solstice.compat.EquinoxModel(lambda key: eqx.nn.Linear(5, 3, key=key))
        experiment = solstice.ClassificationExperiment(model, Sgd(0.1), num_classes=3)
        data = batches(Masked((X, Y), mask), 8, shuffle=True, on_device=on_device)
        trainer = solstice.Trainer()
        trainer.fit(experiment, data, data, num_epochs=2)
        return trainer.history.rows

    assert same(run(True), run(False))


@pytest.mark.parametrize(
    "options",
    [
        {"sanity_val_batches": 2},
        {"overfit_batches": 3},
        {"fast_dev_run": 2},
        {"prefetch": 2},
        {"val_every_n_steps": 7},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_trainer_mean_the_same(options: dict[str, Any]):
    assert fitted(True, **options) == fitted(False, **options)


@pytest.mark.parametrize(
    "x",
    [
        X.astype(">f4"),
        np.asfortranarray(X),
        X[:, ::-1],
        jnp.asarray(X),
        X > 0,
        X.astype(np.float64),
    ],
    ids=["big-endian", "fortran", "a view", "jax", "bool", "float64"],
)
def test_arrays_of_any_layout_give_the_same_bits(x: Any):
    assert fitted(True, (x, Y), num_epochs=1) == fitted(False, (x, Y), num_epochs=1)


def test_with_x64_the_device_has_the_wide_arrays():
    data = batches((X.astype(np.float64), Y), 25, on_device=True)
    assert data.place()[0].dtype == np.float32
    jax.config.update("jax_enable_x64", True)
    try:
        assert data.place()[0].dtype == np.float64
    finally:
        jax.config.update("jax_enable_x64", False)


on_two = pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")


@on_two
def test_the_data_goes_to_the_device_of_the_experiment():
    device = jax.devices()[1]
    experiment = solstice.replace(net(), w=jax.device_put(W.astype(np.float32), device))
    data = batches((X, Y), 25, on_device=True)
    found = solstice.Trainer().fit(experiment, data)
    assert found.w.devices() == {device}
    assert data.place(device)[0].devices() == {device}


@on_two
@pytest.mark.filterwarnings("ignore:.*on 2 devices")
def test_an_experiment_on_several_devices_is_fed_from_the_host():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    experiment = solstice.replace(net(), w=jax.device_put(W.astype(np.float32), everywhere))
    trainer = solstice.Trainer()
    trainer.fit(experiment, (X, Y), batch_size=25)
    assert "fed from the host: the Experiment lies on several devices" in trainer.explain()
    with pytest.raises(solstice.DataError, match=r"lie on 2 devices\. Feed them"):
        trainer.fit(experiment, batches((X, Y), 25, on_device=True))


# Resume


class Dies(solstice.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, record: solstice.Record) -> None:
        if record.mode == "train" and record.step == self.step:
            raise RuntimeError("died")


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("step", [3, 18, 19, 25])
def test_a_run_goes_on_exactly_however_batches_come(tmp_path: Any, first: bool, step: int):
    def run(on_device: bool, folder: str, dies: int = 0, resume: str | None = None) -> Any:
        callbacks = [Checkpoint(tmp_path / folder, every=1), Dies(dies)]
        options = {"resume": resume, "strict_resume": True}
        return fitted(on_device, callbacks=callbacks, fit=options)

    expected = run(False, "whole")
    with pytest.raises(RuntimeError, match="died"):
        run(first, "cut", step)
    assert run(not first, "cut", resume="last")[0] == expected[0]


@pytest.mark.parametrize("first", [False, True])
def test_epochs_of_one_batch_go_on_exactly_however_batches_come(tmp_path: Any, first: bool):
    def run(on_device: bool, folder: str, dies: int = 0, resume: str | None = None) -> Any:
        callbacks = [Checkpoint(tmp_path / folder, every=1), Dies(dies)]
        options = {"resume": resume, "strict_resume": True}
        arguments = {"callbacks": callbacks, "fit": options, "num_epochs": 4}
        return fitted(on_device, size=75, experiment=net(products), **arguments)

    expected = run(False, "whole")
    with pytest.raises(RuntimeError, match="died"):
        run(first, "cut", 2)
    assert run(not first, "cut", resume="last")[0] == expected[0]


def test_a_resumed_run_from_the_host_has_buffers_of_its_own_size(tmp_path: Any):
    """A call on the device has as many steps as an epoch, for which the host may have no memory."""
    many = np.zeros((3000, 5), np.float32), np.zeros(3000, np.int32)
    fitted(True, many, 1, callbacks=[Checkpoint(tmp_path)], num_epochs=1, fit={"max_steps": 2900})
    trainer = solstice.Trainer([Checkpoint(tmp_path)])
    data = batches(many, 1, shuffle=True, seed=3)
    val = batches(many, 10)
    trainer.fit(net(), data, val, max_steps=2910, num_epochs=1, resume="last")
    assert "up to 512 steps a call" in trainer.explain()


def test_other_arrays_are_noticed_when_a_run_is_resumed(tmp_path: Any):
    fitted(True, callbacks=[Checkpoint(tmp_path)], num_epochs=1)
    with pytest.raises(solstice.checkpoint.CheckpointError, match="their checksum was"):
        fitted(
            True,
            (X + 1, Y),
            callbacks=[Checkpoint(tmp_path)],
            fit={"resume": "last", "strict_resume": True},
        )


def test_the_failing_step_is_replayed(tmp_path: Any):
    x = X.copy()
    x[60] = np.nan
    guard = NaNGuard()
    data = batches((x, Y), 4, shuffle=True, seed=3, on_device=True)
    flight = FlightRecorder(tmp_path, every=5)
    with pytest.raises(FloatingPointError, match="became NaN"):
        solstice.Trainer([guard, flight]).fit(net(), data, num_epochs=1)
    found = solstice.replay(tmp_path, net(), data)
    assert any(path.startswith("batch[0]") for path in found.nonfinite)
    assert np.isnan(found.batch[0]).any()


# Checks


class Checked(Net):
    """Refuses labels of 9."""

    def check_batch(self, batch: Any) -> None:
        if (batch[1] == 9).any():
            raise solstice.DataError(f"label 9 in {batch[1].tolist()}")


class CheckedAtOnce(Checked):
    """Refuses them in stacked batches."""

    def stacked_check(self) -> Any:
        def check(batches: Any) -> None:
            if (batches[1] == 9).any():
                raise solstice.DataError(f"label 9 in {batches[1].reshape(-1).tolist()}")

        return check


@pytest.mark.parametrize("kind", [Checked, CheckedAtOnce])
@pytest.mark.parametrize("place", [0, 30, 74])
def test_no_bad_batch_trains_anything(kind: type[Net], place: int):
    labels = Y.copy()
    labels[place] = 9

    def ended(on_device: bool) -> Any:
        spy = Spy(1, ("batch",))
        trainer = solstice.Trainer([spy])
        data = batches((X, labels), 4, shuffle=True, on_device=on_device)
        experiment = net(kind=kind)
        with pytest.raises(solstice.DataError, match="label 9") as caught:
            trainer.fit(experiment, data, num_epochs=2)
        return str(caught.value), digest(trainer.experiment), spy.seen

    assert same(ended(True), ended(False))


def test_valid_examples_are_checked_once():
    seen: list[tuple[int, ...]] = []

    class Sees(CheckedAtOnce):
        def stacked_check(self) -> Any:
            return lambda batches: seen.append(batches[1].shape)

    data = batches((X, Y), 4, shuffle=True, on_device=True)
    solstice.Trainer().fit(net(kind=Sees), data, num_epochs=3)
    assert seen == [(1, len(Y))]


def test_checks_see_numbers_before_jax_narrows_them():
    """2**32 is 0 in int32, and a check must not take it for the label 0."""
    labels = Y.astype(np.int64)
    labels[3] = 2**32

    class Sees(Net):
        def check_batch(self, batch: Any) -> None:
            assert batch[1].max() < 3

    experiment = net(kind=Sees)
    with pytest.raises(AssertionError):
        solstice.Trainer().fit(experiment, batches((X, labels), 4, on_device=True))


def test_slow_checks_give_shorter_blocks(monkeypatch: pytest.MonkeyPatch, no_hurry: None):
    monkeypatch.setattr(_block_size, "PATIENCE", 0.25)
    clock = stopped(monkeypatch, _resident)

    def check(batch: Any) -> None:
        clock.now += 0.1

    data = batches((X, Y), 5, on_device=True)
    epoch = _resident.EpochOfRows(data.place(), None, 75, 5, 0, 15, data.arrays, data.__getitem__)
    feeder = _resident.ResidentFeeder(epoch, _resident.ResidentBuffers(BlockSize(15)), check)
    blocks = [feeder.take(100) for _ in range(6)]
    assert [block and len(block) for block in blocks] == [3, 3, 3, 3, 3, None]


# Transfers


class Counting(Net):
    """A net with a Python number and a NumPy array, which become arrays of JAX."""

    count: int = 0
    total: Any = None

    def train_step(self, batch: Any) -> Any:
        new, outputs = super().train_step(batch)
        return solstice.replace(new, count=self.count + 1, total=self.total + 1), outputs


@pytest.mark.parametrize("steps_per_call", [None, 1])
@pytest.mark.parametrize("on_device", [False, True])
def test_an_accelerator_gets_batches_ahead_of_their_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, on_device: bool, steps_per_call: int | None
):
    """`transfer_guard` refuses transfers by the call itself, also on the CPU."""
    monkeypatch.setattr(_placement, "READS_HOST", ())
    data = batches((X, Y), 8, shuffle=True, on_device=on_device)
    experiment = Counting(jnp.asarray(W, jnp.float32), jax.random.key(7), dense, 0, np.zeros(3))
    callbacks = [Checkpoint(tmp_path, every=4), EarlyStopping("val/loss"), NaNGuard(every=3)]
    trainer = solstice.Trainer(callbacks, steps_per_call=steps_per_call)
    with jax.transfer_guard("disallow"):
        found = trainer.fit(experiment, data, data, num_epochs=2)
        trainer.test(found, data)
        list(trainer.predict(found, data))
    assert not found.w.committed
    monkeypatch.undo()
    again = solstice.Trainer(steps_per_call=steps_per_call).fit(experiment, data, num_epochs=2)
    assert digest(found) == digest(again)
    assert (found.count, found.total.tolist()) == (20, [20.0] * 3)


def test_blocks_for_an_accelerator_lie_there_before_their_call():
    slots = StagingBuffers(BlockSize(4), placement=_placement.SingleDevice(puts=True))
    block = Feeder(iter([X[:2]] * 3), slots, lambda batch: None).take(4)
    assert block is not None
    assert isinstance(block.placed, jax.Array)
    assert np.array_equal(block.placed[:3], np.stack([X[:2]] * 3))


# The copy on the device


def test_later_changes_of_the_arrays_have_no_effect():
    x, y = X.copy(), Y.copy()
    data = batches((x, y), 4, shuffle=True, seed=3, on_device=True)
    expected = digest(solstice.Trainer().fit(net(), data))

    class Changes(solstice.Callback):
        def on_fit_start(self, record: solstice.Record) -> None:
            x[:], y[:] = 7, 0

    spy = Spy(1, ("batch",))
    assert digest(solstice.Trainer([Changes(), spy]).fit(net(), data)) == expected
    assert not any((s[2]["batch"][0] == 7).all() for s in spy.seen)
    assert (x == 7).all()
    with pytest.raises(ValueError, match="read-only"):
        data.arrays[0][:] = 7


def test_the_arrays_are_put_on_the_device_once_and_given_up_with_the_batches():
    data = batches((X, Y), 4, shuffle=True, on_device=True)
    placed = data.place()
    solstice.Trainer().fit(net(), data, data, num_epochs=2)
    solstice.Trainer().fit(net(), data)
    assert data.place()[0] is placed[0]
    buffers = [x.unsafe_buffer_pointer() for x in placed]
    assert buffers == [x.ctypes.data for x in data.arrays]  # no second copy on the CPU
    del data, placed
    gc.collect()
    live = {x.unsafe_buffer_pointer() for x in jax.live_arrays() if x.shape == X.shape}
    assert buffers[0] not in live


def test_copies_of_batches_are_the_same_batches():
    data = batches((X, Y), 4, shuffle=True, seed=3, on_device=True)
    data.place()
    for other in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert digest(solstice.Trainer().fit(net(), other)) == digest(
            solstice.Trainer().fit(net(), data)
        )


def test_callbacks_may_change_the_batch_that_they_got():
    class Changes(solstice.Callback):
        needs = ("batch",)

        def on_step_end(self, record: solstice.Record) -> None:
            record.batch[0][:] = 0

    assert fitted(True, callbacks=[Changes()], shuffle=False) == fitted(True, shuffle=False)


# The rule


def test_small_arrays_of_fit_go_to_the_device_and_large_ones_do_not(
    monkeypatch: pytest.MonkeyPatch,
):
    def explained() -> str:
        trainer = solstice.Trainer()
        trainer.fit(net(), (X, Y), (X, Y), batch_size=4)
        return trainer.explain()

    nbytes = X.nbytes + Y.nbytes
    assert f"train_ds is on the device: {nbytes:,} bytes" in explained()
    monkeypatch.setattr(_memory, "_SMALL", nbytes)
    assert "is on the device" in explained()
    monkeypatch.setattr(_memory, "_SMALL", nbytes - 1)
    assert f"fed from the host: its {nbytes:,} bytes are more than {nbytes - 1:,}" in explained()


def test_an_eighth_of_the_memory_of_the_device_is_small():
    class Device:
        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 800, "bytes_in_use": 700}

    assert _memory.small_bytes(Device()) == 100


def test_text_among_the_arrays_of_fit_is_fed_from_the_host():
    names = np.array([f"row {i}" for i in range(75)])
    spy = Spy(1, ("batch",))
    trainer = solstice.Trainer([spy])
    trainer.fit(net(), (X, Y, names), batch_size=25)
    assert "train_ds is fed from the host: one has the dtype <U6" in trainer.explain()
    assert sorted(name for s in spy.seen for name in s[2]["batch"][2]) == sorted(names)


@pytest.mark.parametrize(
    "stranger",
    [
        np.array(["row 17"] * 75),
        np.array([object()] * 75),
        np.zeros(75, "datetime64[s]"),
        np.zeros(75, [("a", "f4")]),
    ],
    ids=["text", "objects", "times", "records"],
)
def test_what_jax_has_no_type_for_is_refused_on_the_device(stranger: Any):
    with pytest.raises(solstice.DataError, match=r"one has the dtype .*`solstice.*5, seed=3\)`"):
        batches((X, stranger), 5, seed=3, on_device=True)
    assert not batches((X, stranger), 5, on_device=None).is_resident


def test_a_subclass_whose_batches_may_differ_from_its_arrays_is_refused():
    class Flipped(solstice.data.Batches):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            return x[:, ::-1], y

    with pytest.raises(solstice.DataError, match="Flipped is a class of its own"):
        Flipped((X, Y), 5, on_device=True)
    assert not Flipped((X, Y), 5, on_device=None).is_resident
    assert batches((X, Y), 5, on_device=None).is_resident


def test_too_many_examples_for_the_device_are_refused():
    with pytest.raises(solstice.DataError, match=r"there are 2,147,483,648\. Feed them"):
        batches(np.zeros((2**31, 0), np.float32), 5, on_device=True)


def test_arrays_that_do_not_fit_are_refused_by_name():
    class Full:
        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 1000}

    data = batches((X, Y), 5, on_device=True)
    with pytest.raises(solstice.DataError, match=r"1,800 bytes, cannot be put .* has 1,000"):
        data.place(Full())


@pytest.mark.parametrize("value", ["gpu", 1, 0])
def test_on_device_is_a_switch(value: Any):
    with pytest.raises(ValueError, match="on_device must be True, False or None"):
        batches((X, Y), 5, on_device=value)


def test_a_function_that_makes_data_for_the_device_is_refused():
    with pytest.raises(solstice.DataError, match="pass the batches themselves, `train_ds="):
        solstice.Trainer().fit(net(), lambda: batches((X, Y), 5, on_device=True))
