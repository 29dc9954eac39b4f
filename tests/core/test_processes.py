"""One training in several processes, with real processes over loopback."""

import os
from typing import Any

import pytest
from peers import Ended, run

pytestmark = pytest.mark.slow

HEAD = """
import hashlib, logging, signal
connect()
import equinox as eqx
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import multihost_utils
from solstice import Phase, Stop

class Net(solstice.Experiment):
    w: jax.Array
    m: jax.Array
    key: jax.Array

    def train_step(self, batch):
        x, y = batch
        key, now = jax.random.split(self.key)
        x = x * jax.random.bernoulli(now, 0.9, x.shape)
        loss = lambda w: jnp.mean((x @ w - y) ** 2)
        value, grad = jax.value_and_grad(loss)(self.w)
        m = 0.9 * self.m + grad
        return solstice.replace(self, w=self.w - 0.01 * m, m=m, key=key), {"loss": value}

    def eval_step(self, batch):
        x, y = batch
        return self, {"error": jnp.mean(jnp.abs(x @ self.w - y))}

    def predict_step(self, batch):
        return batch[0] @ self.w

rng = np.random.default_rng(0)
X = rng.normal(size=(8 * 25 + 5, 8)).astype(np.float32)
Y = (X @ rng.normal(size=8)).astype(np.float32)

def make(seed=0):
    return Net(jnp.zeros(8), jnp.zeros(8), jax.random.key(seed))

def batches(count=26):
    return [(X[8 * i:8 * i + 8], Y[8 * i:8 * i + 8]) for i in range(count)]

def sha(experiment):
    leaves = jax.tree.leaves(distributed.gather(experiment))
    plain = [jax.random.key_data(x) if x.dtype == jax.random.key(0).dtype else x for x in leaves]
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in plain)).hexdigest()[:16]

class At(solstice.Callback):
    \"\"\"Does something in process 1 at a training step, in one of the hooks.\"\"\"

    def __init__(self, action, hook="on_step_end", step=12, phase=Phase.LOG, every=1):
        self.action, self.hook, self.step, self.phase, self.every = action, hook, step, phase, every

    def look(self, hook, record):
        if me == 1 and hook == self.hook and record.mode == "train" and record.step >= self.step:
            self.step = 10**9
            self.action()

    def on_epoch_start(self, record): self.look("on_epoch_start", record)
    def on_step_end(self, record): self.look("on_step_end", record)
    def on_call_end(self, record): self.look("on_call_end", record)
    def on_epoch_end(self, record): self.look("on_epoch_end", record)

class OnStart(At):
    def on_step_start(self, record): self.look("on_step_start", record)

class Saves(solstice.Callback):
    saves, every = True, None
    step = None
    def on_call_end(self, record):
        if record.interrupted:
            self.step = record.step

def stop():
    raise Stop("enough")

def boom():
    raise RuntimeError("boom in one process")

def fit(name, *callbacks, data=None, val=True, experiment=None, **options):
    given = {"mesh": "all", "steps_per_call": 8, **options}
    trainer = solstice.Trainer([*callbacks], **given)
    val_ds = batches(4) if val else None
    try:
        trained = trainer.fit(experiment or make(), data or batches(), val_ds, num_epochs=2)
    except BaseException as error:
        show(name, ["error", type(error).__name__, str(error)])
        return None
    rows = [{k: v for k, v in row.items() if k != "mode"} for row in trainer.history.rows]
    show(name, ["ok", sha(trained), rows])
    return trained
"""

CALM = (
    HEAD
    + """
from jax.sharding import PartitionSpec

class Reads(solstice.Callback):
    needs, every = ("experiment",), 5
    def __init__(self, read):
        self.read, self.seen = read, []
    def on_step_end(self, record):
        if record.mode == "train":
            self.seen.append(self.read(record.experiment.w).tolist())

reads = Reads(distributed.gather)
split = {"[wm]": PartitionSpec("data")}
fit("split", reads, sharding=split, val=False)
show("gathered", reads.seen)
reads.seen = []
fit("not split", reads, val=False)
show("read", reads.seen)
trainer = solstice.Trainer([Reads(np.asarray)], mesh="all", sharding=split)
try:
    trainer.fit(make(), batches())
    show("advice", [])
except RuntimeError as error:
    show("advice", error.__notes__)

trained = fit("plain")
fit("again")
fit("resident", data=solstice.data.batches((X, Y), 8, on_device=True), val=False)
fit("fed", data=solstice.data.batches((X, Y), 8), val=False)
fit("within the epoch", val_every_n_steps=8)
fit("two steps a call", steps_per_call=2)
outputs = np.concatenate(list(solstice.Trainer(mesh="all").predict(trained, batches())))
show("predict", outputs.tolist())
show("test", solstice.Trainer(mesh="all").test(trained, batches()))
show("gather", distributed.gather(trained.w).tolist())

predictions = solstice.Trainer(mesh="all").predict(trained, batches())
next(predictions)
predictions.close()
fit("prefetch", prefetch=3)
trainer = solstice.Trainer(mesh="all", sharding=split)
given = trainer.fit(trainer.fit(make(), batches()), batches(), donate=True)
show("donated", sha(given))
show("kept", sha(trainer.fit(trainer.fit(make(), batches()), batches())))

class Validates(solstice.Callback):
    every, seen = 10, ()
    trainer = solstice.Trainer(mesh="all")
    def on_step_end(self, record):
        if record.mode == "train":
            self.seen += (self.trainer.validate(trained, batches(4))["error"],)

validates = Validates()
fit("validates", validates)
show("validated", validates.seen)

class Sees(solstice.Callback):
    every, needs = 5, ("batch", "outputs", "experiment", "metrics")
    def __init__(self, processes):
        self.processes, self.seen = processes, []
    def on_step_end(self, record):
        if record.mode == "train":
            metrics = record.metrics["loss"]
            self.seen.append([record.step, record.num_examples, len(record.batch[0]), metrics])

sees = [Sees("first"), Sees("all")]
fit("callbacks", *sees)
show("seen", [one.seen for one in sees])

class Empty(solstice.callbacks.Saver):
    def find(self, which):
        return None

solstice.Trainer([Empty()], mesh="all").fit(make(), batches(2), num_epochs=1, resume="last")

class Sheds(Net):
    # Fewer members after each epoch, and other weights.
    members: jax.Array

    def train_step(self, batch):
        new, outputs = super().train_step(batch)
        members = new.members + batch[0].mean()
        return solstice.replace(new, members=members), {**outputs, "members": members.sum()}

    def epoch_step(self, metrics):
        w = self.w / (1 + metrics["val/error"])
        return solstice.replace(self, w=w, members=self.members[1:])

    @property
    def is_finished(self):
        return len(self.members) == 2

sheds = Sheds(jnp.zeros(8), jnp.zeros(8), jax.random.key(0), jnp.zeros(4))
trained = fit("epoch step", experiment=sheds)
show("shed", trained and len(trained.members))
fit("epoch step alone", experiment=sheds, val_every_n_steps=13)

rows = slice(4 * me, 4 * me + 4)
shares = [(x[rows], y[rows]) for x, y in batches(25)]
fit("shares", data=solstice.data.per_process(shares), val=False)
fit("whole", data=batches(25), val=False)
"""
)

FAILURES = (
    HEAD
    + """
fit("stop", At(stop))
fit("stop before a validation", At(stop), val_every_n_steps=16)
fit("stop at a validation", At(stop, step=16), val_every_n_steps=16)
fit("stop before a save", At(stop), At(int, phase=Phase.SAVE, every=16))
fit("stop in on_step_start", OnStart(stop, "on_step_start"))
fit("stop after a call", At(stop, "on_call_end"))
fit("stop after an epoch", At(stop, "on_epoch_end"))
fit("stop before an epoch", At(stop, "on_epoch_start"))
show("stops", [solstice.Trainer().history is not None])

fit("raise", At(boom))
fit("raise before a validation", At(boom), val_every_n_steps=16)
fit("raise in on_step_start", OnStart(boom, "on_step_start"))
fit("raise after a call", At(boom, "on_call_end"))
fit("raise after an epoch", At(boom, "on_epoch_end"))
fit("raise before an epoch", At(boom, "on_epoch_start"))

def breaks(epoch):
    for index, batch in enumerate(batches()):
        if me == 1 and index == 10:
            raise OSError("the disk is gone")
        yield batch

fit("raise in the data", data=breaks, val=False)
fit("fewer batches", data=batches(26 - 5 * me), val=False)
fit("fewer validation batches", data=batches(16))
fit("other data", data=batches() if me == 0 else batches()[::-1])
fit("other epoch", data=lambda epoch: batches()[epoch * me:])
fit("other seed", experiment=make(me))
fit("other callbacks", *[At(int)] * me)
fit("other options", steps_per_call=8 + me)
fit("other rate", experiment=make(), data=solstice.data.per_process(batches()))
rows = slice(4 * me, 4 * me + 4)
shares = [(x[rows], y[rows]) for x, y in batches(10)]
rows = slice(0, 8 - 4 * me)
uneven = [(x[rows] + me, y[rows]) for x, y in batches(20)]
fit("other sizes", data=solstice.data.per_process(uneven), val=False)
short = [*shares[:9], tuple(leaf[:4 - 2 * me] for leaf in shares[9])]
fit("other sizes at the end", data=solstice.data.per_process(short), val=False)
across = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, -1).T, ("data", "model"))
fit("model across", data=solstice.data.per_process(shares), val=False, mesh=across)
fit("no mesh", mesh=None)
fit("last", val=False)
"""
)

SIGNALS = (
    HEAD
    + """
# A shell that starts the tests in the background ignores Ctrl-C in all its children.
signal.signal(signal.SIGINT, signal.default_int_handler)

def kill(number):
    return lambda: signal.raise_signal(number)  # to this thread, before the next step

for number in (signal.SIGTERM, signal.SIGINT):
    for name, options in [("", {}), (" before a validation", {"val_every_n_steps": 16})]:
        saves = Saves()
        fit(f"{number.name}{name}", At(kill(number)), saves, **options)
        show(f"{number.name}{name} saved", saves.step)
"""
)

HUNT = (
    HEAD
    + """
import random
sleeps = random.Random(100 * int(os.environ["SEED"]) + me)
nap = lambda: time.sleep(sleeps.uniform(0, 0.05))

class Naps(solstice.Callback):
    every, processes, blocks = 3, "all", 0
    def on_step_end(self, record): nap()
    def on_epoch_end(self, record): nap()
    def on_call_end(self, record):
        self.blocks += 1
        nap()

def data(epoch):
    for batch in batches(15):
        nap()
        yield batch

def hunt(name, callbacks, num_epochs, **options):
    trainer = solstice.Trainer(callbacks, mesh="all", **options)
    trained = trainer.fit(make(), data, batches(2), num_epochs=num_epochs)
    nap()
    show(name, [sha(trained), trainer.test(trained, batches(3)), [one.blocks for one in callbacks]])

hunt("free", [Naps()], 6)
hunt("data alone", [], 6, steps_per_call=2)
hunt("short", [Naps()], int(os.environ["EPOCHS"]), steps_per_call=2)
"""
)
SEEDS, EPOCHS, BLOCKS = (10, 40, 300) if "CLOCK_HUNT" in os.environ else (2, 4, 30)
"""The clock hunt; `CLOCK_HUNT=1 pytest tests/core/test_processes.py -k clock` is the long one."""


def test_it_ends_with_the_history_of_one_process():
    one, (first, second) = run(CALM, 1, timeout=240)[0], run(CALM, 2, timeout=240)
    assert_ended(one, 0)
    for ended in (first, second):
        assert_ended(ended, 0)
    for name, (kind, _, rows) in ((n, v) for n, v in one.shown.items() if is_run(v)):
        assert kind == "ok"
        if name == "shares":
            continue  # with one process, a share is all
        assert first.shown[name][1] == second.shown[name][1], name
        assert_close(first.shown[name][2], rows, name)
        assert_close(second.shown[name][2], rows, name)
    for ended in (first, second):
        assert_close(ended.shown["predict"], one.shown["predict"], "predict")
        assert_close(ended.shown["test"], one.shown["test"], "test")
        assert_close(ended.shown["gather"], one.shown["gather"], "gather")
        assert ended.shown["donated"] == ended.shown["kept"]
        assert ended.shown["shed"] == 2
        assert_close(ended.shown["validated"], one.shown["validated"], "validated")
        for name in ("again", "two steps a call", "prefetch", "validates"):
            assert ended.shown["plain"][1] == ended.shown[name][1]
        assert ended.shown["resident"] == ended.shown["fed"]
        assert_close(ended.shown["shares"][2], ended.shown["whole"][2], "shares")
        assert_close(ended.shown["gathered"], one.shown["read"], "gathered")
        assert "`solstice.distributed.gather(tree)`" in ended.shown["advice"][0]
    assert first.shown["gathered"] == second.shown["gathered"]
    assert one.shown["advice"] == []
    seen = one.shown["seen"]
    assert_close(first.shown["seen"], seen, "seen")
    assert_close(second.shown["seen"], [[], seen[1]], "seen")
    said = [ended.output.count("nothing saved") for ended in (one, first, second)]
    assert said == [1, 1, 0]


def test_a_stop_an_error_or_other_data_in_one_process_ends_all_of_them():
    first, second = run(FAILURES, 2, timeout=240)
    assert_ended(first, 0)
    assert_ended(second, 0)
    steps = {
        "stop": 12,
        "stop before a validation": 12,
        "stop at a validation": 16,
        "stop before a save": 12,
        "stop in on_step_start": 13,
        "stop after a call": 16,
        "stop after an epoch": 26,
        "stop before an epoch": 26,
    }
    for name, step in steps.items():
        assert first.shown[name][:2] == second.shown[name][:2], name
        assert first.shown[name][0] == "ok"
        assert max(row["step"] for row in second.shown[name][2]) == step, name
        assert_close(last_training(first.shown[name]), last_training(second.shown[name]), name)
    for name, shown in second.shown.items():
        if name.startswith("raise"):
            kind, text = shown[1:]
            assert kind in ("RuntimeError", "OSError"), name
            assert first.shown[name][1] == "PeerFailed", (name, first.shown[name])
            assert first.shown[name][2] == f"process 1 failed: {kind}: {text}", name
    for ended in (first, second):
        assert [row["step"] for row in ended.shown["fewer batches"][2]] == [21, 42]
        assert "it ends after 21 batches" not in second.output
        assert "it ends after 21 batches, because another process has no more" in first.output
        expected = {
            "other data": "process 1 has another first batch of train_ds than process 0",
            "other epoch": "process 1 has another first batch in epoch 1 of 'train' than process 0",
            "other seed": "process 1 has another Net than process 0: the same step with other",
            "other rate": "processes 0 and 1 have the same first batch of train_ds",
            "other sizes": "the processes have batches of other shapes: process 0 has",
            "other sizes at the end": "the processes have batches of other shapes: process 0 has",
        }
        for name, text in expected.items():
            kind, error, message = ended.shown[name]
            assert (kind, error) == ("error", "DataError"), (name, ended.shown[name])
            assert text in message
        kind, error, message = ended.shown["model across"]
        assert error == "ShardingError", message
        assert "each process needs parts of its own" in message
        for name, text in [
            ("other callbacks", "with the callbacks History(every=None); process 1 is at fit, "),
            ("other options", "steps_per_call=9"),
        ]:
            assert ended.shown[name][1] == "PeerMismatch"
            assert text in ended.shown[name][2]
        assert ended.shown["no mesh"][1] == "RuntimeError"
        assert 'Trainer(mesh="all")' in ended.shown["no mesh"][2]
    assert first.shown["last"] == second.shown["last"]


def test_a_signal_to_one_process_ends_all_of_them_at_one_step():
    first, second = run(SIGNALS, 2, timeout=120)
    for ended in (first, second):
        assert_ended(ended, 0)
        for name, shown in ended.shown.items():
            if is_run(shown):
                expected = "SystemExit" if "SIGTERM" in name else "KeyboardInterrupt"
                assert shown[:2] == ["error", expected], name
    saved = {name: step for name, step in first.shown.items() if name.endswith("saved")}
    assert len(saved) == 4
    for name, step in saved.items():  # a validation is cut short, and its block is run again
        assert second.shown[name] == step == (8 if "validation" in name else 16), name


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_clock_decides(seed: int):
    first, second = run(HUNT, 2, timeout=300, SEED=str(seed), EPOCHS=str(EPOCHS))
    assert_ended(first, 0)
    assert_ended(second, 0)
    assert first.shown == second.shown
    assert first.shown["short"][2][0] >= BLOCKS


def is_run(shown: Any) -> bool:
    return isinstance(shown, list) and len(shown) == 3 and shown[0] in ("ok", "error")


def last_training(shown: Any) -> Any:
    return [row for row in shown[2] if "loss" in row][-1]


def assert_ended(ended: Ended, code: int) -> None:
    assert ended.code == code, ended.output[-4000:]


def assert_close(one: Any, other: Any, name: str) -> None:
    """Compares nested numbers; counts exactly."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key in one:
            assert_close(one[key], other[key], f"{name}: {key}")
    elif isinstance(one, list):
        assert len(one) == len(other), name
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, f"{name}[{index}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6), name
    else:
        assert one == other, name
