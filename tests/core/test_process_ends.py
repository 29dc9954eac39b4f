"""How two processes end when something happens in one: their exit codes, and how soon."""

from pathlib import Path

import pytest
from peers import Ended, run

from solstice import checkpoint
from solstice.checkpoint import _orbax

try:
    _orbax.check_installed()
    HAS_ORBAX = True
except ImportError:
    HAS_ORBAX = False

pytestmark = pytest.mark.slow

SECONDS = 30
"""Within which all processes end after something has happened in one."""

PROGRAM = """
import hashlib, signal
connect(timeout=10)
import jax, jax.numpy as jnp, numpy as np
from solstice._agreement import agreement

event, who, folder = os.environ["EVENT"], int(os.environ["WHO"]), os.environ.get("FOLDER")

class Net(solstice.Experiment):
    w: jax.Array

    def train_step(self, batch):
        w = self.w - 0.1 * (batch.mean(axis=0) - self.w)
        return solstice.replace(self, w=w), {"mean": w.mean()}

    def eval_step(self, batch):
        return self, {}

def happened():
    show("happened", time.time())

def error():
    raise RuntimeError("boom in one process")

def stop():
    raise solstice.Stop("enough")

def send(number):
    os.kill(os.getpid(), number)

def debugger():
    time.sleep(6)
    agreement().timeout = 600

actions = {
    "error": error, "error outside": error, "exit outside": sys.exit,
    "stop": stop, "debugger": debugger,
    "sigterm": lambda: send(signal.SIGTERM), "sigterm before": lambda: send(signal.SIGTERM),
    "kill": lambda: send(signal.SIGKILL), "uneven": int,
}

class Saves(solstice.Callback):
    # `Checkpoint` needs Orbax for it.
    saves, every = True, None
    def on_call_end(self, record):
        if record.interrupted:
            show("saved", record.step)

class At(solstice.Callback):
    def on_step_end(self, record):
        if record.step == 100 and me == who and not event.endswith(("before", "outside")):
            happened()
            actions[event]()

if event == "debugger":
    agreement().timeout = 3
if event.endswith("outside"):
    jax.devices()  # in which JAX itself waits for all
if event.endswith(("before", "outside")) and me == who:
    happened()
    actions[event]()
count = 40 - 5 * me * (event == "uneven")
data = list(np.random.default_rng(0).normal(size=(40, 8, 4)).astype(np.float32))[:count]
callbacks = [At(), solstice.callbacks.Checkpoint(folder) if folder else Saves()]
trainer = solstice.Trainer(callbacks, mesh="all", steps_per_call=8)
trained = trainer.fit(Net(jnp.zeros(4)), data, num_epochs=5)
digest = hashlib.sha256(np.asarray(trained.w).tobytes()).hexdigest()
show("end", [trainer.history.rows[-1]["step"], trainer.history.rows[-1]["epoch"], digest])
"""


def ended(event: str, who: int = 1, **env: str) -> list[Ended]:
    """Both processes, of which something happens in one; first the one where it does not."""
    both = run(PROGRAM, timeout=90, EVENT=event, WHO=str(who), **env)
    seconds = max(one.at for one in both) - both[who].shown["happened"]
    print(f"{event} in process {who}: {seconds:.1f} s, codes {[one.code for one in both]}")
    assert seconds < SECONDS
    return [both[1 - who], both[who]]


def codes(processes: list[Ended], *expected: int) -> None:
    found = tuple(one.code for one in processes)
    assert found == expected, "\n".join(one.output[-3000:] for one in processes)


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("what", ["error", "error outside"])
def test_an_error_in_one_ends_both_with_1(what: str, who: int):
    other, first = both = ended(what, who)
    codes(both, 1, 1)
    assert f"PeerFailed: process {who} failed: RuntimeError: boom in one process" in other.output
    assert "RuntimeError: boom in one process" in first.output
    assert not [one for one in both if "Check failure" in one.output]


@pytest.mark.parametrize("who", [0, 1])
def test_a_script_that_ends_before_the_other_is_named(who: int):
    both = ended("exit outside", who)
    codes(both, 1, 0)
    assert f"PeerFailed: process {who} failed: its script has ended" in both[0].output
    assert not [one for one in both if "Check failure" in one.output]


def test_uneven_batches_end_both_with_0():
    both = ended("uneven")
    codes(both, 0, 0)
    assert both[0].shown["end"] == both[1].shown["end"]
    assert both[0].shown["end"][:2] == [175, 4]


def test_a_stop_in_one_ends_both_with_0_at_one_step():
    both = ended("stop")
    codes(both, 0, 0)
    assert both[0].shown["end"] == both[1].shown["end"]
    assert both[0].shown["end"][0] == 100


def test_a_sigterm_to_one_saves_and_ends_both_with_143():
    both = ended("sigterm")
    codes(both, 143, 143)
    assert [one.shown["saved"] for one in both] == [104, 104]


@pytest.mark.skipif(not HAS_ORBAX, reason="several processes save with Orbax")
def test_a_sigterm_to_one_leaves_a_checkpoint_of_both(tmp_path: Path):
    codes(ended("sigterm", FOLDER=str(tmp_path / "runs")), 143, 143)
    assert checkpoint.exists(tmp_path / "runs" / "step-104")


def test_a_sigterm_before_fit_ends_both_with_143():
    codes(ended("sigterm before"), 143, 143)


@pytest.mark.parametrize("who", [0, 1])
def test_a_kill_ends_the_other(who: int):
    """JAX ends it with SIGABRT: Python cannot."""
    other, killed = ended("kill", who)
    assert killed.code == -9
    assert other.code not in (0, -9)
    assert "Terminating process because the JAX distributed service" in other.output


def test_a_process_in_a_debugger_is_named():
    other, stopped = ended("debugger")
    assert "PeerMissing: process 1 did not arrive at block 'train, epoch 2" in other.output
    codes([other, stopped], 1, 1)
