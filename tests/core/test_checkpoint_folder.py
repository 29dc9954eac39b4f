"""The folder of a Checkpoint belongs to its user too: what else is there stays, and runs go on."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice import checkpoint
from solstice.callbacks import Checkpoint, Saver
from solstice.checkpoint import CheckpointError

pytest.importorskip("safetensors")

DATA = [np.ones(2, np.float32)] * 2


class Adds(solstice.Experiment):
    """Two steps an epoch; the validation measures what it is asked to."""

    step: jax.Array
    values: jax.Array

    def train_step(self, batch):
        return solstice.replace(self, step=self.step + 1), {"loss": batch.mean()}

    def eval_step(self, batch):
        return self, {"loss": self.values[self.step // 2 - 1], "accuracy": -self.values[0]}


def fit(callbacks, epochs, values=(4.0, 3.0, 2.0, 1.0), **options):
    padded = np.resize(np.float32(values), 9)
    exp = Adds(jnp.zeros((), jnp.int32), jnp.asarray(padded))
    trainer = solstice.Trainer(callbacks)
    return int(trainer.fit(exp, DATA, DATA[:1], num_epochs=epochs, **options).step)


def run(folder, epochs, *, resume="last", **options):
    return fit([Checkpoint(folder, **options)], epochs, resume=resume)


def names(folder):
    """All names but those of the descriptions of runs, which tests/core/test_runs.py looks at."""
    return sorted(path.name for path in folder.iterdir() if not path.match("run*.json"))


def steps(folder):
    return sorted(int(n[5:]) for n in names(folder) if n.startswith("step-") and n[5:].isdigit())


def content(path):
    """What is at a path, all of it."""
    if path.is_symlink():
        return os.readlink(path)
    if path.is_dir():
        return {inner.name: content(inner) for inner in path.iterdir()}
    return path.read_bytes()


# What is not ours


def file(name):
    return name, lambda path: path.write_text("precious")


def folder(name, inner="precious"):
    def make(path):
        path.mkdir()
        if inner:
            (path / inner).write_text('{"name": "a web application"}')

    return name, make


def link(name, to):
    return name, lambda path: path.symlink_to(to)


def copied(name):
    return name, lambda path: shutil.copytree(path.parent.parent / "one" / "step-2", path)


HOSTILE = dict(
    [
        *map(file, [".notes.old", ".m.jsonl.new", ".step-4.new", "step-3", "step-", ".step-6.old"]),
        *map(folder, [".data.old", ".best.new", ".step-8.old", "step-x", "step-2-", "step-1000"]),
        *[folder(".empty.new", None), folder(".app.old", "manifest.json")],
        *[folder("step-5", "manifest.json"), folder("step-04x", None)],
        *[link("step-best", "step-2"), link("step-7", "nowhere"), link(".step-2.new", "../one")],
        *[link("step-9", "step-9"), link(".step-4.old", "../one/step-2"), link("step-11", "/")],
        *map(copied, ["step-2-keep", "step-2.bak", ".backup.old", "Step-2", "best"]),
    ]
)
"""By name, what makes it: a file, a folder, a copy, a link to one, to nothing or to itself."""


@settings(deadline=None, max_examples=15)
@given(st.sets(st.sampled_from(sorted(HOSTILE))))
def test_what_is_not_ours_stays_and_the_run_goes_on(tmp_path_factory, chosen):
    root = tmp_path_factory.mktemp("folder")
    run(root / "one", 1)
    (root / "a").mkdir()
    for name in chosen:
        HOSTILE[name](root / "a" / name)
    before, outside = {name: content(root / "a" / name) for name in chosen}, content(root / "one")
    for epochs in (1, 2, 4, 4):
        assert run(root / "a", epochs) == 2 * epochs
        ours = {f"step-{2 * e}" for e in (epochs - 1, epochs) if e}
        assert {*names(root / "a")} == ours | chosen
    assert run(root / "a", 1, resume=None, overwrite=True) == 2
    assert {*names(root / "a")} == {"step-2"} | chosen
    assert {name: content(root / "a" / name) for name in chosen} == before
    assert content(root / "one") == outside


def test_all_of_them_at_once(tmp_path):
    run(tmp_path / "one", 1)
    (tmp_path / "a").mkdir()
    for name, make in HOSTILE.items():
        make(tmp_path / "a" / name)
    before = content(tmp_path / "a")
    for epochs in (1, 4):
        assert run(tmp_path / "a", epochs, monitor="val/loss", keep=1) == 2 * epochs
    assert Checkpoint(tmp_path / "a").last == tmp_path / "a" / "step-8"
    shutil.rmtree(tmp_path / "a" / "step-8")
    (tmp_path / "a" / "run.json").unlink()
    assert content(tmp_path / "a") == before


def test_sweep_removes_what_is_ours_alone(tmp_path):
    tree = {"a": np.zeros(2)}
    best = checkpoint.save(tmp_path / "best", tree)
    for name, part in [("best", None), ("other", "arrays.safetensors"), ("third", "rows-1.jsonl")]:
        (tmp_path / f".{name}.new").mkdir()
        if part:
            (tmp_path / f".{name}.new" / part).write_text("half")
    foreign = [".notes.old", ".data.old", ".empty.new", ".app.old"]
    for name in foreign:
        HOSTILE[name](tmp_path / name)
    before = {name: content(tmp_path / name) for name in foreign}
    assert len(checkpoint.sweep(tmp_path, ["nothing"])) == 0
    assert [p.name for p in checkpoint.sweep(tmp_path)] == [".best.new", ".other.new", ".third.new"]
    assert {name: content(tmp_path / name) for name in foreign} == before
    assert checkpoint.diff(best, tree) == {}


def test_the_only_whole_checkpoint_is_never_waste(tmp_path):
    """A file has taken its name, while its old version waits to come back."""
    checkpoint.save(tmp_path / "best", {"a": np.zeros(2)}).rename(tmp_path / ".best.old")
    (tmp_path / "best").write_text("somebody's")
    assert checkpoint.sweep(tmp_path) == []
    assert names(tmp_path) == [".best.old", "best"]


def test_a_manifest_that_has_changed_is_read_again(tmp_path):
    """Each is read once, so that a save costs the same however many there are."""
    run(tmp_path / "a", 2, monitor="val/loss")
    saver = Checkpoint(tmp_path / "a", monitor="val/loss")
    assert saver.best == tmp_path / "a" / "step-4"
    manifest = tmp_path / "a" / "step-4" / "manifest.json"
    whole = manifest.read_bytes()
    for length in (len(whole) - 1, 3, 0):
        manifest.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="step-4"):
            print(saver.last)
    manifest.unlink()
    assert saver.last == tmp_path / "a" / "step-2"
    manifest.write_bytes(whole)
    assert saver.last == tmp_path / "a" / "step-4"


def test_remove_and_exists(tmp_path):
    path = checkpoint.save(tmp_path / "a", {"a": np.zeros(2)})
    (tmp_path / "link").symlink_to(path)
    HOSTILE["step-5"](tmp_path / "app")
    there = {name: checkpoint.exists(tmp_path / name) for name in ("a", "link", "app", "none")}
    assert there == {"a": True, "link": True, "app": False, "none": False}
    checkpoint.remove(tmp_path / "link")
    assert names(tmp_path) == ["a", "app"]
    for name in ("app", "none"):
        with pytest.raises(CheckpointError, match="is not a checkpoint, and was not removed"):
            checkpoint.remove(tmp_path / name)
    checkpoint.remove(path)
    assert names(tmp_path) == ["app"]


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path):
    HOSTILE["step-5"](tmp_path / "app")
    with pytest.raises(CheckpointError, match="is there and is not a checkpoint"):
        checkpoint.save(tmp_path / "app", {"a": np.zeros(2)})
    assert names(tmp_path / "app") == ["manifest.json"]


# Links


def test_a_checkpoint_that_was_moved_and_linked_back(tmp_path):
    a, big = tmp_path / "a", tmp_path / "big"
    run(a, 2)
    shutil.move(a / "step-4", big)
    (a / "step-4").symlink_to(big)
    before = content(big)
    assert Checkpoint(a).last == a / "step-4"
    assert run(a, 4, keep=1) == 8
    assert names(a) == ["step-4", "step-8"]
    assert content(big) == before
    assert run(a, 3, resume=a / "step-4") == 6  # and back to it, in the same folder
    assert Checkpoint(a).last == a / "step-6"
    assert run(a, 1, resume=None, overwrite=True) == 2
    assert names(a) == ["step-2"]  # the user asked for the end of all
    assert content(big) == before


@pytest.mark.parametrize("is_there", [True, False])
def test_the_folder_may_be_a_link(tmp_path, is_there):
    if is_there:
        (tmp_path / "big").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "big")
    assert run(tmp_path / "a", 1) == 2
    assert run(tmp_path / "a", 3) == 6
    assert names(tmp_path / "big") == ["step-4", "step-6"]
    assert (tmp_path / "a").is_symlink()


@pytest.mark.parametrize("disk", ["same", "other"])
def test_saving_to_a_link_replaces_what_it_leads_to(tmp_path, tmp_path_factory, disk):
    big = tmp_path / "big"
    if disk == "other":
        if not os.access("/dev/shm", os.W_OK):
            pytest.skip("there is one disk")
        big = Path("/dev/shm") / f"{tmp_path.parent.name}-{tmp_path.name}"
    (tmp_path / "best").symlink_to(big / "best")
    try:
        for value in (1.0, 2.0, 3.0):
            checkpoint.save(tmp_path / "best", {"a": np.float64(value)})
            assert names(big) == ["best"]
            assert names(tmp_path) == ["best"] if disk == "other" else ["best", "big"]
            found = checkpoint.load(tmp_path / "best", like={"a": np.float64(0)})
            assert found["a"] == value
        (big / "best").rename(big / ".best.old")  # as by a kill between two renames
        assert checkpoint.load(tmp_path / "best", like={"a": np.float64(0)})["a"] == 3
        checkpoint.save(tmp_path / "best", {"a": np.float64(4)})
        assert names(big) == ["best"]
        assert (tmp_path / "best").is_symlink()
    finally:
        shutil.rmtree(big)


# Two writers


def test_two_checkpoints_in_one_folder_are_refused_with_what_to_write(tmp_path):
    by_loss = Checkpoint(tmp_path / "a", monitor="val/loss")
    by_accuracy = Checkpoint(tmp_path / "a", monitor="val/accuracy", mode="max")
    with pytest.raises(CheckpointError, match="two Checkpoints save into") as error:
        fit([by_loss, by_accuracy], 1)
    assert names(tmp_path / "a") == []
    lines = str(error.value).split("`")[1::2]
    apart = [eval(line, {"Checkpoint": Checkpoint}) for line in lines]
    assert [(c.monitor, c.mode) for c in apart] == [("val/loss", "min"), ("val/accuracy", "max")]
    assert fit(apart, 2) == 4
    assert [steps(c.directory) for c in apart] == [[2, 4], [2, 4]]
    assert fit([by_loss], 2) == 4  # the folder is free again


def test_one_folder_by_two_names_is_one_folder(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    for other in ("a", tmp_path / "link", tmp_path / "b" / ".." / "a"):
        with pytest.raises(CheckpointError, match="two Checkpoints save into"):
            fit([Checkpoint(tmp_path / "a"), Checkpoint(other)], 1)


@pytest.mark.parametrize("turned", [False, True])
def test_last_is_the_newest_of_all_savers(tmp_path, turned):
    often = lambda: Checkpoint(tmp_path / "often", every=3, every_epochs=None)  # noqa: E731
    each = lambda: Checkpoint(tmp_path / "each")  # noqa: E731

    def both():
        return [each(), often()] if turned else [often(), each()]

    seen = []

    class Starts(solstice.Callback):
        def on_fit_start(self, record):
            seen.append(record.step)

    fit(both(), 4)
    assert (steps(tmp_path / "often"), steps(tmp_path / "each")) == ([3, 6], [6, 8])
    fit([*both(), Starts()], 5, resume="last")
    # Back to an earlier one: what was saved since then is the newest, and not what is further.
    assert (steps(tmp_path / "often"), steps(tmp_path / "each")) == ([6, 9], [8, 10])
    fit([each()], 4, resume=tmp_path / "often" / "step-6")
    fit([*both(), Starts()], 5, resume="last")
    assert seen == [8, 8]


HOLDS = """
import os, sys
import jax.numpy as jnp
sys.path.insert(0, sys.argv[2])
from tests.core.test_checkpoint_folder import Adds, DATA
import solstice

class Waits(solstice.Callback):
    def on_epoch_start(self, record):
        if record.mode == "train" and record.epoch == 2 and saver.last:  # which has been written
            if os.fork() == 0:  # a worker of a data set, which outlives it
                os.read(0, 1)
                os._exit(0)
            print("begun", flush=True)
            os.read(0, 1)

exp = Adds(jnp.zeros((), jnp.int32), jnp.ones(9))
saver = solstice.callbacks.Checkpoint(sys.argv[1])
solstice.Trainer([saver, Waits()]).fit(exp, DATA, num_epochs=9)
"""


def test_another_process_in_the_folder_is_refused_until_it_dies(tmp_path):
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "a"), str(Path(__file__).parents[2])]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "begun\n"
        before = content(tmp_path / "a")
        for resume in (None, "last"):
            with pytest.raises(CheckpointError, match=f"process {process.pid} on .*-2'") as error:
                run(tmp_path / "a", 4, resume=resume, overwrite=True)
        assert "another process saves into" in str(error.value)
        assert Checkpoint(tmp_path / "a").last == tmp_path / "a" / "step-4"  # reading is free
        assert content(tmp_path / "a") == before
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert run(tmp_path / "a", 4) == 8  # while the worker is still there
        assert names(tmp_path / "a") == ["step-6", "step-8"]
    finally:
        process.kill()
        process.wait()
        process.stdin.close()  # ends the worker
        process.stdout.close()


def test_a_file_that_cannot_be_locked_is_no_obstacle(tmp_path):
    (tmp_path / "precious").write_text("precious")
    to_file = link("", tmp_path / "precious")[1]
    for make in (to_file, link("", "nowhere")[1], Path.mkdir, os.mkfifo, Path.touch):
        (tmp_path / "a").mkdir()
        make(tmp_path / "a" / ".solstice.lock")
        assert run(tmp_path / "a", 1) == 2
        assert "nowhere" not in names(tmp_path / "a")
        shutil.rmtree(tmp_path / "a")
    assert (tmp_path / "precious").read_text() == "precious"


# A kill between the two renames


@pytest.mark.parametrize("is_locked", [False, True])
def test_a_checkpoint_that_waits_for_its_name_is_seen(tmp_path, is_locked):
    a = tmp_path / "a"
    run(a, 2, monitor="val/loss")
    other = Checkpoint(a, monitor="val/loss")
    if is_locked:  # by another writer, who may be between the renames now
        other.on_fit_start(solstice.Record(mode="train", step=4, has_validation=True))
    (a / "step-4").rename(a / ".step-4.old")
    shutil.copytree(a / "step-2", a / ".step-4.new")
    saver = Checkpoint(a, monitor="val/loss")
    assert saver.last == saver.best == saver.find("last") == a / "step-4"
    assert checkpoint.exists(a / "step-4")
    assert checkpoint.manifest(a / "step-4")["note"]["run"]["step"] == 4
    assert (a / "step-4").exists() != is_locked
    other.on_fit_end(solstice.Record(mode="train"))


@pytest.mark.parametrize("resume", ["last", "best"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_goes_on_from_it_and_never_removes_it(tmp_path, resume, overwrite):
    a = tmp_path / "a"
    run(a, 2, keep=1, monitor="val/loss")
    (a / "step-4").rename(a / ".step-4.old")
    started = []

    class Starts(solstice.Callback):
        def on_fit_start(self, record):
            started.append(record.step)

    saver = Checkpoint(a, monitor="val/loss", overwrite=overwrite)
    assert fit([saver, Starts()], 3, resume=resume) == 6
    assert started == [4]
    assert names(a) == ["step-4", "step-6"]


# Starting again


def test_overwriting_removes_nothing_before_something_is_saved(tmp_path):
    a = tmp_path / "a"
    run(a, 2)
    seen = []

    class Fails(solstice.Callback):
        phase = solstice.Phase.SAVE

        def on_fit_start(self, record):
            seen.append(saver.last)
            raise ZeroDivisionError

    saver = Checkpoint(a, overwrite=True)
    with pytest.raises(ZeroDivisionError):
        fit([saver, Fails()], 2)
    assert seen == [None]  # those are of another run
    assert saver.last == a / "step-4"
    assert run(a, 1, resume=None, overwrite=True) == 2
    assert names(a) == ["step-2"]


def test_an_overwritten_run_is_never_resumed(tmp_path):
    """A kill after the first save of the new run, before the old ones are removed."""
    a = tmp_path / "a"
    run(a, 4, monitor="val/loss")
    shutil.copytree(a, tmp_path / "old")
    run(a, 1, resume=None, overwrite=True, monitor="val/loss")
    shutil.copytree(tmp_path / "old" / "step-8", a / "step-8")
    saver = Checkpoint(a, monitor="val/loss")
    assert saver.last == saver.best == a / "step-2"
    assert fit([saver], 2, resume="last") == 4
    assert names(a) == ["step-2", "step-4"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_best_of_nothing_but_nan_says_what_is_there(tmp_path, overwrite):
    a, nan = tmp_path / "a", float("nan")

    def saver():
        return Checkpoint(a, monitor="val/loss", overwrite=overwrite)

    assert fit([saver()], 2, (nan, nan), resume="best") == 4
    with pytest.raises(CheckpointError, match="has 2 checkpoints, and none has a") as error:
        fit([saver()], 2, (nan, nan), resume="best")
    assert names(a) == ["step-2", "step-4"]
    assert saver().best is None
    lines = str(error.value).split("`")[1::2]
    for line in lines:
        assert fit([saver()], 3, (nan,) * 3, **eval(f"dict({line})")) == 6


# Who is asked


class Mine(Saver):
    """Of somebody else's."""

    every = None

    def __init__(self, folder, compares=False):
        self.folder, self.compares = folder, compares

    def on_epoch_end(self, record):
        if record.mode == "train":
            snapshot = record.snapshot
            checkpoint.save(self.folder, snapshot.experiment, note=snapshot.note)

    def find(self, which):
        if which == "best" and not self.compares:
            raise ValueError("I do not compare")
        return self.folder if checkpoint.exists(self.folder) else None


class Search(solstice.Callback):
    """Not a Saver, and whatever its methods do is its own."""

    every = None

    def find(self, name):
        raise AssertionError


def test_every_saver_is_asked_and_nobody_else(tmp_path, caplog):
    def go(epochs, resume):
        callbacks = [Search(), Mine(tmp_path / "mine"), Checkpoint(tmp_path / "a")]
        return fit(callbacks, epochs, resume=resume)

    assert go(1, "last") == 2
    assert "have nothing saved: starting a new run" in caplog.text
    assert go(2, "last") == 4
    shutil.rmtree(tmp_path / "a")
    caplog.clear()
    assert go(3, "last") == 6
    assert str(tmp_path / "mine") in caplog.text
    shutil.rmtree(tmp_path / "mine")
    assert go(4, "last") == 8
    with pytest.raises(ValueError, match="asks a Checkpoint callback"):
        fit([Search()], 1, resume="last")
    with pytest.raises(ValueError, match="I do not compare"):
        go(4, "best")


def test_the_best_is_that_of_the_one_that_compares(tmp_path):
    def go(epochs, *callbacks):
        return fit(callbacks, epochs, resume="best")

    def a():
        return Checkpoint(tmp_path / "a", monitor="val/loss")

    for epochs in (1, 2):
        assert go(epochs, Checkpoint(tmp_path / "plain"), a()) == 2 * epochs
    with pytest.raises(ValueError, match="has 2 answers") as error:
        go(3, a(), Mine(tmp_path / "plain" / "step-4", compares=True))
    for line in str(error.value).split("`")[1::2]:
        assert fit([a()], 3, **eval(f"dict({line})")) == 6


def test_a_saver_must_find():
    class Forgets(Saver):
        pass

    with pytest.raises(TypeError, match="find"):
        Forgets()


def test_a_start_that_is_refused_leaves_the_folder_unlocked(tmp_path):
    assert run(tmp_path, 1) == 2
    with pytest.raises(CheckpointError, match="another run") as refused:
        run(tmp_path, 1, resume=None)
    assert refused.tb, "the frames hold what the failed start had opened"
    assert run(tmp_path, 2) == 4


def test_a_run_within_a_run_needs_a_checkpoint_of_its_own(tmp_path):
    saver = Checkpoint(tmp_path, overwrite=True)

    class Inner(solstice.Callback):
        modes = ("train",)

        def on_epoch_start(self, record):
            fit([saver], 1)

    with pytest.raises(CheckpointError, match="a folder of its own"):
        fit([Inner(), saver], 1)
    assert steps(tmp_path) == [2]
