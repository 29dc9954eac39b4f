"""A thousand fits in one process leave nothing behind, nor do many models and optimizers."""

import gc
import threading
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import CLASSES, FEATURES, Sgd, blobs

import solstice
from solstice._engine import PROGRAMS, _compiled, _trace
from solstice._loop import _monitored
from solstice.callbacks import Checkpoint, CompileMonitor
from solstice.experiments import _language

CACHES: Any = [
    (_trace, "_trace"),
    (_compiled, "compiled"),
    (_compiled, "merging_of"),
    (_trace, "_digest_of"),
    (_language, "_compiled"),
    (_monitored, "_names"),
]
DATA = [*blobs(4), tuple(array[:5] for array in blobs(1)[0])]


@pytest.fixture(autouse=True)
def own_objects():
    """A collection looks at the objects of the test, not at all that the tests before have left."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def fits(model: Any, optimizer: Any, count: int) -> None:
    for seed in range(count):
        experiment = solstice.ClassificationExperiment(model, optimizer, num_classes=3, seed=seed)
        trainer = solstice.Trainer(prefetch=seed % 2)
        trained = trainer.fit(experiment, DATA, DATA)
        assert np.isfinite(trainer.test(trained, DATA)["loss"])


def programs() -> int:
    """How many there are in all caches of compiled and traced steps."""
    caches = [getattr(module, name) for module, name in CACHES]
    return executables() + sum(cache.cache_info().currsize for cache in caches)


def executables() -> int:
    """How many compiled programs XLA holds."""
    gc.collect()
    return len(jax.devices()[0].client.live_executables())


def resident() -> int:
    """Kilobytes in memory, where Linux tells."""
    if not Path("/proc/self/status").exists():
        return 0
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.slow
def test_a_thousand_fits_leave_no_thread_no_memory_and_no_program():
    model = eqx.nn.Linear(FEATURES, CLASSES, key=jax.random.key(0))
    optimizer = Sgd(0.1)
    fits(model, optimizer, 100)
    gc.collect()
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event)
    )
    before = (programs(), threading.active_count(), len(jax.live_arrays()), len(gc.get_objects()))
    memory = resident()
    fits(model, optimizer, 900)
    gc.collect()
    after = (programs(), threading.active_count(), len(jax.live_arrays()), len(gc.get_objects()))
    assert after[:3] == before[:3]
    assert after[3] - before[3] < 900  # less than an object a fit
    assert resident() - memory < 30_000  # kB: a leak of a slot a fit would be ten times that
    assert not [event for event in compiled if "backend_compile" in event]


class Rate:
    """What a step is compiled for: equal to itself alone, as an optimizer made for a run is."""


class Falls(solstice.Experiment):
    rate: Rate = eqx.field(static=True)
    weight: Any = 1.0

    def train_step(self, batch):
        loss = jnp.asarray(self.weight, jnp.float32) * batch.sum()
        return solstice.replace(self, weight=jnp.asarray(self.weight) - 0.1), {"loss": loss}

    def eval_step(self, batch):
        return self, {"loss": batch.sum()}


ONES = [np.ones(2, np.float32)] * 3


def alive(refs: list[Any]) -> int:
    gc.collect()
    return sum(ref() is not None for ref in refs)


class FitsWithin(solstice.Callback):
    """Fits many other Experiments while the first is trained."""

    def __init__(self) -> None:
        self.refs: list[Any] = []
        self.executables: list[int] = []

    def on_epoch_end(self, record):
        for _ in range(PROGRAMS + 3 if record.epoch == 0 and record.mode == "train" else 0):
            rate = Rate()
            solstice.Trainer([]).fit(Falls(rate), ONES)
            self.refs.append(weakref.ref(rate))
            self.executables.append(executables())


@pytest.mark.slow
def test_the_newest_programs_are_kept_and_the_others_are_freed():
    outer, newest, within, monitor = Rate(), Rate(), FitsWithin(), CompileMonitor()
    solstice.Trainer([within, monitor]).fit(Falls(outer), ONES, num_epochs=3)
    assert len(monitor.compilations) == 1  # a run holds its own
    assert alive(within.refs[:-PROGRAMS]) == 0
    assert within.executables[-1] == within.executables[PROGRAMS - 1]
    solstice.Trainer([]).fit(Falls(newest), ONES)
    assert alive(within.refs) == PROGRAMS - 1
    again = CompileMonitor()
    for rate in [newest, *[ref() for ref in within.refs if ref() is not None], outer]:
        solstice.Trainer([again]).fit(Falls(rate, weight=2.0), ONES)
    assert len(again.compilations) == 1  # that of `outer`, which is the oldest


@pytest.fixture
def keeps_two(monkeypatch):
    """Two programs are kept in place of many, so that few have to be compiled."""
    for module, name in CACHES:
        function = getattr(module, name).__wrapped__
        monkeypatch.setattr(module, name, lru_cache(maxsize=2)(function))


TOKENS = np.zeros((4, 5), np.int32)


@jax.tree_util.register_static
class Table:
    """A language model by a table, with an equality of its own."""

    def init(self, key, x, /):
        return {"table": jnp.zeros((5, 5))}, {}

    def forward(self, params, state, x, /, *, train, key=None):
        return params["table"][x], state


def classifier():
    model = solstice.compat.EquinoxModel(eqx.nn.Linear(FEATURES, CLASSES, key=jax.random.key(0)))
    optimizer = Sgd(0.1)
    exp = solstice.ClassificationExperiment(model, optimizer, num_classes=3)
    return exp, [weakref.ref(model), weakref.ref(model.model.weight), weakref.ref(optimizer)]


def language():
    model, optimizer = Table(), Sgd(0.1)
    exp = solstice.LanguageModelExperiment(model, optimizer, 5, sample_input=TOKENS)
    return exp, [weakref.ref(model), weakref.ref(optimizer)]


USES = {
    "fit": lambda exp, tmp: exp.train(DATA, DATA, callbacks=[]),
    "save": lambda exp, tmp: exp.train(DATA, callbacks=[Checkpoint(tmp, overwrite=True)]),
    "watch": lambda exp, tmp: exp.train(DATA, callbacks=[CompileMonitor(), solstice.History()]),
    "test": lambda exp, tmp: exp.setup(DATA[0]).test(DATA),
    "predict": lambda exp, tmp: exp.setup(DATA[0]).predict(DATA),
    "plan": lambda exp, tmp: solstice.plan(exp, DATA[0]),
    "summary": lambda exp, tmp: str(solstice.summary(exp, DATA[0])),
    "generate": lambda exp, tmp: exp.generate(TOKENS, 2, key=jax.random.key(0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
def test_models_and_optimizers_and_their_weights_are_freed(use, keeps_two, tmp_path):
    refs: list[Any] = []
    for count in range(5):
        exp, made = language() if use == "generate" else classifier()
        USES[use](exp, tmp_path / str(count))
        refs += made
        del exp
    assert alive(refs) <= 2 * len(made)
