"""A thousand fits in one process leave nothing behind."""

import gc
import threading
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest
from toys import CLASSES, FEATURES, Sgd, blobs

import solstice
from solstice._engine import _program, _step
from solstice._engine._merging import merging_of

DATA = [*blobs(4), tuple(array[:5] for array in blobs(1)[0])]


def fits(model: Any, optimizer: Any, count: int) -> None:
    for seed in range(count):
        experiment = solstice.ClassificationExperiment(model, optimizer, num_classes=3, seed=seed)
        trainer = solstice.Trainer(prefetch=seed % 2)
        trained = trainer.fit(experiment, DATA, DATA)
        assert np.isfinite(trainer.test(trained, DATA)["loss"])


def programs() -> int:
    """How many there are in all caches of compiled and traced steps."""
    compiled: Any = [_step._run, _step._run_in_place]  # pyright: ignore[reportPrivateUsage]
    caches: Any = [_program._trace, merging_of]  # pyright: ignore[reportPrivateUsage]
    return sum(run._cache_size() for run in compiled) + sum(c.cache_info().currsize for c in caches)


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
