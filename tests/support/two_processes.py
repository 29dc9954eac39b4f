"""One of two processes with two devices each; `python two.py SCENARIO ADDRESS INDEX FOLDER`."""

import os
import re
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import solstice
from solstice import checkpoint
from solstice._stored import placed
from solstice.checkpoint import CheckpointError, _orbax, _peers, _save

SPLIT, WHOLE = PartitionSpec("data"), PartitionSpec()


def numbers(seed: int = 0) -> dict[str, Any]:
    """A state of each kind of leaf, on the host."""
    rng = np.random.default_rng(seed)
    return {
        "rows": rng.normal(size=(8, 3)).astype(np.float32),
        "half": rng.normal(size=(4,)).astype(jnp.bfloat16),
        "['a/b']/../c": rng.integers(0, 9, (4, 2)),
        "whole": rng.normal(size=(3,)).astype(np.float32),
        "scalar": np.float32(seed),
        "none": np.zeros((0, 2), np.float32),
        "raw": np.asarray(jax.random.PRNGKey(seed)),
    }


def state(mesh: Mesh | None, seed: int = 0, *, is_split: bool = True) -> dict[str, Any]:
    """The state on a mesh, or on no device in particular."""

    def place(name: str, leaf: Any) -> jax.Array:
        if mesh is None:
            return jnp.asarray(leaf)
        rows = name in ("rows", "half", "['a/b']/../c", "keys") and is_split
        return placed(leaf, NamedSharding(mesh, SPLIT if rows else WHOLE))

    key, keys = jax.random.key(seed), jax.random.split(jax.random.key(seed, impl="rbg"), 4)
    data = {"key": jax.random.key_data(key), "keys": jax.random.key_data(keys)}
    wrapped = {
        name: jax.random.wrap_key_data(place(name, np.asarray(x)), impl=impl)
        for (name, x), impl in zip(data.items(), ("threefry2x32", "rbg"), strict=True)
    }
    found = {name: place(name, leaf) for name, leaf in numbers(seed).items()}
    return {"of": {**found, **wrapped}, "host": np.arange(3) + seed, "count": 10**30 + seed}


def shards(tree: Any) -> list[Any]:
    """The bits of this process."""
    found: list[Any] = []
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, jax.Array):
            found.append(np.asarray(leaf, object if isinstance(leaf, int) else None))
            continue
        data = (
            jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        )
        found += [np.array(shard.data) for shard in data.addressable_shards]
    return found


def check_same(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert type(a) is type(b)
        if isinstance(a, jax.Array):
            assert a.dtype == b.dtype
            assert a.sharding == b.sharding
            assert a.committed == b.committed
    for a, b in zip(shards(one), shards(other), strict=True):
        np.testing.assert_array_equal(a, b)


def check_raises(kind: type[BaseException], words: str, call: Callable[[], object]) -> None:
    with pytest.raises(kind, match=re.escape(words)):
        call()


def everything(mesh: Mesh, index: int, folder: Path) -> None:
    """Saves and loads in all ways; the rest is checked by the test, in one process."""
    tree = state(mesh)
    targets = {
        "split": state(mesh, 5),
        "whole": state(mesh, 5, is_split=False),
        "none": state(None, 5),
        "other": state(Mesh(np.array(jax.devices())[::-1], ("data",)), 5),
    }
    expected = {
        "split": tree,
        "whole": state(mesh, is_split=False),
        "none": state(None),
        "other": state(Mesh(np.array(jax.devices())[::-1], ("data",))),
    }
    checkpoint.save(folder / "a", state(mesh, 9))
    saved = checkpoint.save(folder / "a", tree, note={"epoch": 3})
    assert saved == folder / "a"
    for name, like in targets.items():
        check_same(checkpoint.load(folder / "a", like=like), expected[name])
        # What one process has saved.
        check_same(checkpoint.load(folder / "one", like=like), expected[name])
    found = checkpoint.load(folder / "a", like=targets["split"], only="*rows*")
    check_same(found["of"]["rows"], tree["of"]["rows"])
    check_same(found["of"]["half"], targets["split"]["of"]["half"])
    assert checkpoint.diff(folder / "a", folder / "one") == {}

    os.chdir(folder)  # Orbax refuses relative paths
    donated = state(mesh, 3)
    finish = checkpoint.begin("donated", donated)
    step = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf + 1, x), donate_argnums=0)
    arrays = {
        n: x for n, x in donated["of"].items() if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    }
    for _ in range(3):
        arrays = step(arrays)
    del donated, arrays
    finish()
    check_same(checkpoint.load("donated", like=tree), state(mesh, 3))
    for name in ("bad", "file"):
        check_errors(mesh, index, folder, name)
    # Nothing is left of what failed, and the processes are in step.
    assert {path.name for path in folder.iterdir()} == {"a", "one", "donated", "file"}
    sync()
    os.makedirs(folder / ".x.new", exist_ok=True)
    (folder / ".x.new" / "arrays.safetensors").touch()
    sync()
    assert checkpoint.sweep(folder) == [folder / ".x.new"]
    checkpoint.remove(folder / "donated")
    assert not checkpoint.exists(folder / "donated")


def sync() -> None:
    _peers.Peers("the test").together(lambda: None)


def check_errors(mesh: Mesh, index: int, folder: Path, name: str) -> None:
    tree, path = state(mesh), folder / name
    if name == "file":
        path.touch()
        sync()
        check_raises(CheckpointError, "is not a checkpoint", lambda: checkpoint.save(path, tree))
        return
    save = partial(checkpoint.save, path)
    check_raises(
        CheckpointError, "the folder differs", lambda: checkpoint.save(f"{path}-{index}", tree)
    )
    check_raises(CheckpointError, "`['count']` differs", lambda: save({**tree, "count": index}))
    check_raises(
        CheckpointError, "`['host']` differs", lambda: save({**tree, "host": np.ones(index)})
    )
    check_raises(CheckpointError, "`['of']['new']` differs", lambda: save(
        {**tree, "of": {**tree["of"], **({"new": jnp.ones(2)} if index else {})}}
    ))  # fmt: skip
    check_raises(CheckpointError, "`['name']` differs", lambda: save({**tree, "name": f"{index}"}))
    kind, words = (TypeError, "JSON") if index == 0 else (CheckpointError, "process 0: TypeError")
    check_raises(kind, words, lambda: save(tree, note={"x": object()}))
    gone = state(mesh)
    if index == 1:
        gone["of"]["rows"].delete()
    kind, words = (ValueError, "deleted") if index else (CheckpointError, "process 1: ValueError")
    check_raises(kind, words, lambda: save(gone))
    with pytest.MonkeyPatch.context() as patch:
        if index == 1:  # of another file system
            patch.setattr(Path, "is_dir", lambda _: False)
        check_raises(CheckpointError, "it is not here: several processes", lambda: save(tree))
    library = "orbax.checkpoint.experimental.v1"
    kept = sys.modules[library]
    sys.modules[library] = None  # type: ignore[assignment]
    check_raises(ImportError, "pip install 'orbax-checkpoint", lambda: save(tree))
    check_raises(ImportError, "pip install", lambda: checkpoint.check_writable(path))
    if index == 0:
        sys.modules[library] = kept
    kind, words = (ImportError, "pip") if index else (CheckpointError, "process 1: ImportError")
    check_raises(kind, words, lambda: save(tree))
    check_raises(kind, words, lambda: checkpoint.load(folder / "a", like=tree))
    sys.modules[library] = kept


def absent(mesh: Mesh, index: int, folder: Path) -> None:
    """One process does not come: the other names it."""
    _peers.TIMEOUT = 2
    if index == 0:
        check_raises(
            CheckpointError,
            "process 1 did not come within 2 s",
            lambda: checkpoint.save(folder / "a", state(mesh)),
        )
    sync_long()


def sync_long() -> None:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("end")


ROWS = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
BATCHES = [ROWS[start : start + 4] for start in range(0, 20, 4)]


class Noisy(solstice.Experiment):
    """Weights that may be split, with a key that a step draws from."""

    w: jax.Array
    key: jax.Array
    count: int = 0

    def train_step(self, batch: Any) -> Any:
        key, draw = jax.random.split(self.key)
        w = self.w - 0.1 * (batch.mean(axis=0) + 0.1 * jax.random.normal(draw, self.w.shape))
        new = solstice.replace(self, w=w, key=key, count=self.count + 1)
        return new, {"mean": (w * w).mean()}

    def eval_step(self, batch: Any) -> Any:
        return self, {"mean": (batch @ self.w).mean()}


def noisy() -> Noisy:
    return Noisy(jnp.zeros(8), jax.random.key(0))


def trainer(saver: solstice.Callback, mesh: Mesh | None) -> solstice.Trainer:
    split: Any = {} if mesh is None else {"mesh": mesh, "sharding": {"w": SPLIT}}
    return solstice.Trainer([saver], steps_per_call=2, **split)


def fit(
    folder: Path, mesh: Mesh | None, max_steps: int = 10, *, strict: bool = True, **options: Any
) -> Noisy:
    """A run that saves every 3 steps and after each epoch, and is resumed if it can be."""
    saver = solstice.callbacks.Checkpoint(folder, every=3, monitor="train/mean", **options)
    return trainer(saver, mesh).fit(
        noisy(), BATCHES, num_epochs=2, max_steps=max_steps, resume="last", strict_resume=strict
    )


def trained(mesh: Mesh, index: int, folder: Path) -> None:
    """Runs with a `Checkpoint` that all processes write, cut off and resumed."""
    whole = fit(folder / "whole", mesh)
    fit(folder / "cut", mesh, 7)
    check_same(fit(folder / "cut", mesh), whole)
    sync()  # the first has released its lock
    left = sorted(path.name for path in (folder / "cut").iterdir())
    assert left == ["step-10", "step-9"], left  # of the newest two, one is the best
    sync()
    saver = solstice.callbacks.Checkpoint(folder / "cut", monitor="train/mean")
    assert saver.find("last") == saver.last == folder / "cut" / "step-10"
    assert saver.find("best") == saver.best
    check_raises(ValueError, "does not know", lambda: type(saver)(folder / "cut").find("best"))
    # What one process has begun.
    check_raises(
        CheckpointError,
        "ran on 1 device of kind cpu, and this is 4 devices in 2 processes (split) of kind cpu",
        lambda: fit(folder / "one", mesh),
    )
    with pytest.warns(UserWarning, match="ran on 1 device"):
        resumed = fit(folder / "one", mesh, strict=False)
    for shard, other in zip(shards(resumed), shards(whole), strict=True):
        np.testing.assert_allclose(shard, other, rtol=1e-5)
    words = "every 2 minutes, and the clocks of 2 processes differ"
    check_raises(ValueError, words, lambda: fit(folder / "clock", mesh, minutes=2))
    # An error of the first, which alone looks.
    new = trainer(solstice.callbacks.Checkpoint(folder / "cut"), mesh)
    check_raises(CheckpointError, "checkpoints of another run", lambda: new.fit(noisy(), BATCHES))
    sys.modules["orbax.checkpoint.experimental.v1"] = None  # type: ignore[assignment]
    check_raises(ImportError, "pip install", lambda: fit(folder / "early", mesh))


def shared(mesh: Mesh | None, index: int, folder: Path) -> None:
    """Runs over shares of the data, from an iterator with a state, cut off and resumed."""
    check_same(fit_shares(folder / "cut", mesh, index, 7), fit_shares(folder / "7", mesh, index, 7))
    resumed = fit_shares(folder / "cut", mesh, index)
    check_same(resumed, fit_shares(folder / "whole", mesh, index))


def fit_shares(folder: Path, mesh: Mesh | None, index: int, max_steps: int = 10) -> Noisy:
    saver = solstice.callbacks.Checkpoint(folder, every=3)
    shares = solstice.data.per_process([batch + index for batch in BATCHES])
    return trainer(saver, mesh).fit(
        noisy(), shares, num_epochs=2, max_steps=max_steps, resume="last", strict_resume=True
    )


class Killer:
    """Kills this process before its n-th operation on files, or between processes."""

    operations = (
        (_peers.Peers, "_exchange"), (_orbax, "begin"), (_save, "write_arrays"), (_save, "seal"),
        (_save, "with_checksums"), (Path, "mkdir"), (Path, "rename"), (Path, "write_text"),
        (os, "fsync"), (os, "unlink"), (shutil, "rmtree"),
    )  # fmt: skip

    def __init__(self, at: int) -> None:
        self.at, self.done = at, list[str]()
        for owner, name in self.operations:
            setattr(owner, name, self.wrapped(getattr(owner, name), name))

    def wrapped(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == MAIN:  # not in the threads of Orbax
                if len(self.done) == self.at:
                    os.kill(os.getpid(), signal.SIGKILL)
                self.done.append(name)
            return function(*args, **kwargs)

        return counted


MAIN = threading.get_ident()


def kill_while_arrays_are_written(seconds: float) -> None:
    """Kills this process some time after Orbax has begun to write, in its threads."""
    begin = _orbax.begin

    def begin_and_die(*args: Any) -> Any:
        wait = begin(*args)
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return wait

    setattr(_orbax, "begin", begin_and_die)  # noqa: B010


def killed(mesh: Mesh, index: int, folder: Path, who: str, at: str) -> None:
    """Saves two checkpoints, replaces the first and removes the second, killed on the way.

    Args:
        at: the number of operations before the kill, or seconds after Orbax has begun.
    """
    checkpoint.save(folder / "step-1", state(mesh, 1))
    is_killed = index == int(who)
    if is_killed and "." in at:
        kill_while_arrays_are_written(float(at))
    killer = Killer(int(at) if is_killed and "." not in at else 10**9)
    checkpoint.save(folder / "step-2", state(mesh, 2))
    checkpoint.save(folder / "step-1", state(mesh, 3))
    checkpoint.remove(folder / "step-2")
    print(len(killer.done), killer.done)


def main(scenario: str, address: str, index: str, folder: str, *more: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, int(index))
    _peers.TIMEOUT = 40.0
    mesh = Mesh(np.array(jax.devices()), ("data",))
    globals()[scenario](mesh, int(index), Path(folder), *more)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # at a normal exit, it would wait for the other process
