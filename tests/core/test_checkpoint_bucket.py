"""Checkpoints in a bucket: whole or not at all, whenever the process dies or the store fails."""

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import checkpoint
from solstice.__main__ import main
from solstice.callbacks import Checkpoint, FlightRecorder, NaNGuard
from solstice.checkpoint import CheckpointError

pytest.importorskip("safetensors")
pytest.importorskip("fsspec")
pytest.importorskip("etils.epath")

from bucket import Bucket, Killed, install

install()

URL = "s3://bucket/run"


@pytest.fixture(autouse=True)
def _empty(tmp_path, monkeypatch):
    Bucket.empty()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield
    assert [*tmp_path.glob("solstice-*")] == []  # no copy stays on the disk


def tree(value):
    return {"a": np.full(3, value), "b": jnp.float32(value)}


def value_at(url):
    """The number of which `tree` was saved there, or None."""
    if not checkpoint.exists(url):
        return None
    found = checkpoint.load(url, like=tree(0.0))
    assert checkpoint.diff(found, url) == {}
    return float(found["a"][0])


def names():
    return sorted(path.removeprefix("/bucket/") for path in Bucket.objects)


def faults(prepare, action, error):
    """What remains after each fault: fails before operation 0, 1, ... until none is left."""
    for number in range(10_000):
        Bucket.empty()
        prepare()
        Bucket.fail(number, error)
        failed = None
        try:
            action()
        except (Killed, CheckpointError) as found:
            failed = found
        reached = len(Bucket.done) > number
        Bucket.fail(None, None)
        if not reached:
            return
        yield failed
    raise AssertionError("it does not end")


# Saving


@pytest.mark.parametrize("error", [Killed(), OSError("reset"), ValueError("of a library")], ids=str)
def test_a_fault_at_any_operation_leaves_the_old_or_the_new_checkpoint(error):
    seen = []
    url = f"{URL}/best"
    for failed in faults(
        lambda: checkpoint.save(url, tree(1.0)), lambda: checkpoint.save(url, tree(2.0)), error
    ):
        if not isinstance(error, Killed) and failed is not None:
            assert url in str(failed)
            assert str(error) in str(failed)
        seen.append(value_at(url))
        assert (seen[-1] == 2.0) or failed is not None  # what did not fail is there
        checkpoint.save(url, tree(3.0))
        assert value_at(url) == 3.0
        assert len(names()) == 2
    assert seen == sorted(seen)
    assert set(seen) == {1.0, 2.0}


@pytest.mark.parametrize("error", [Killed(), OSError("reset")], ids=str)
def test_a_fault_in_the_first_save_leaves_nothing_or_the_checkpoint(error):
    seen = []
    for _ in faults(lambda: None, lambda: checkpoint.save(URL, tree(1.0)), error):
        seen.append(value_at(URL))
        checkpoint.sweep("s3://bucket")
        assert len(names()) == (0 if seen[-1] is None else 2)
    assert None in seen


def test_a_fault_while_a_checkpoint_is_removed_leaves_it_or_nothing():
    seen = []

    def two_versions():
        checkpoint.save(URL, tree(1.0))
        Bucket.fail("remove", Killed())
        with pytest.raises(Killed):
            checkpoint.save(URL, tree(2.0))
        Bucket.fail(None, None)
        assert len(names()) == 4

    for _ in faults(two_versions, lambda: checkpoint.remove(URL), Killed()):
        seen.append(value_at(URL))
        checkpoint.sweep("s3://bucket", ["run"])
        assert len(names()) == (0 if seen[-1] is None else 2)
    assert set(seen) == {2.0, None}


@pytest.mark.parametrize(
    "ask",
    [
        lambda: checkpoint.exists(URL),
        lambda: checkpoint.manifest(URL),
        lambda: checkpoint.load(URL, like=tree(0.0)),
        lambda: Checkpoint("s3://bucket").find("last"),
        lambda: checkpoint.sweep("s3://bucket"),
        lambda: checkpoint.check_writable(URL),
    ],
    ids=["exists", "manifest", "load", "find", "sweep", "check_writable"],
)
def test_a_fault_is_never_taken_for_a_checkpoint_that_is_not_there(ask):
    for failed in faults(lambda: checkpoint.save(URL, tree(1.0)), ask, OSError("reset")):
        assert "OSError: reset" in str(failed)


class NotFoundError(Exception):
    """Of TensorFlow, which epath takes if it is installed."""


def test_what_is_not_there_has_another_error_with_tensorflow(monkeypatch):
    monkeypatch.setattr(Bucket, "missing", NotFoundError)
    assert not checkpoint.exists(URL)
    checkpoint.save(URL, tree(1.0))
    assert value_at(URL) == 1.0
    fit(saver("s3://bucket/other"), num_epochs=1)


def test_what_cannot_be_saved_leaves_no_copy():
    with pytest.raises(CheckpointError, match="is an array of <U4"):
        checkpoint.save(URL, {"a": np.array(["text"])})
    finish = checkpoint.begin(URL, tree(1.0), note={"a": object()})
    with pytest.raises(TypeError, match="note must hold"):
        finish()
    assert names() == []


def test_an_error_of_the_disk_is_named_by_the_url(tmp_path):
    finish = checkpoint.begin(URL, tree(1.0))
    (copy,) = tmp_path.glob("solstice-*/.run.new")
    (copy / "arrays.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"the checkpoint {URL} could not be written"):
        finish()


def test_a_damaged_file_is_named_by_its_url():
    checkpoint.save(URL, tree(1.0))
    (path,) = (path for path in Bucket.objects if path.endswith("arrays.safetensors"))
    data = Bucket.objects[path]
    Bucket.objects[path] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(CheckpointError, match=rf"{URL}/arrays.safetensors is damaged at"):
        checkpoint.load(URL, like=tree(0.0))
    del Bucket.objects[path]
    Bucket.lists = {}
    with pytest.raises(CheckpointError, match=rf"{URL}/arrays.safetensors is damaged"):
        checkpoint.load(URL, like=tree(0.0))


def test_what_another_process_has_saved_since_is_seen():
    assert not checkpoint.exists(URL)
    lists = dict(Bucket.lists)
    checkpoint.save(URL, tree(1.0))
    Bucket.lists = lists  # as this process would have them
    assert checkpoint.exists(URL)
    lists = dict(Bucket.lists)
    checkpoint.save(URL, tree(2.0))
    Bucket.lists = lists
    assert value_at(URL) == 2.0


def test_it_is_a_local_checkpoint_that_one_can_copy(tmp_path):
    checkpoint.save(URL, tree(1.0), note={"by": "hand"})
    local = tmp_path / "copy"
    local.mkdir()
    for path, data in Bucket.objects.items():
        (local / Path(path).name).write_bytes(data)
    assert checkpoint.diff(local, URL) == {}
    assert checkpoint.manifest(local)["note"] == {"by": "hand"}


class InACloud:
    """A path of another library."""

    def __str__(self):
        return "gs://bucket/run/best"

    def __fspath__(self):
        raise AssertionError("copied")


@pytest.mark.parametrize("path", ["gs://bucket/run/best", InACloud()], ids=["text", "cloud"])
def test_all_of_it_works_on_the_memory_of_fsspec(path):
    assert not checkpoint.exists(path)
    for value in (1.0, 2.0):
        assert str(checkpoint.save(path, tree(value))) == "gs://bucket/run/best"
        assert value_at(path) == value
    found = solstice.callbacks.FlightRecorder(path).directory
    assert checkpoint.load(found, like=tree(0.0))["b"] == 2.0
    assert checkpoint.sweep("gs://bucket/run") == []
    checkpoint.remove(path)
    assert not checkpoint.exists(path)


def test_what_is_not_a_checkpoint_is_named_with_what_is_there():
    with pytest.raises(CheckpointError, match=f"{URL} is not a checkpoint: it is empty or does"):
        checkpoint.load(URL, like=tree(0.0))
    checkpoint.save(f"{URL}/step-2", tree(1.0))
    with pytest.raises(CheckpointError, match="it has no manifest, but 'step-2'"):
        checkpoint.manifest(URL)


def test_other_objects_stay_and_refuse_a_save():
    Bucket.objects["/bucket/run/mine.txt"] = b"precious"
    for action in (
        lambda: checkpoint.save(URL, tree(1.0)),
        lambda: checkpoint.check_writable(URL),
        lambda: checkpoint.remove(URL),
    ):
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            action()
    assert checkpoint.sweep("s3://bucket") == []
    assert names() == ["run/mine.txt"]


def test_sweep_returns_what_it_removed_and_leaves_files_of_others():
    Bucket.objects["/bucket/run/000001-00000000/arrays.safetensors"] = b"half"
    Bucket.objects["/bucket/run/000001-00000000/mine.txt"] = b"precious"
    (removed,) = checkpoint.sweep("s3://bucket")
    assert str(removed) == f"{URL}/000001-00000000"
    assert names() == ["run/000001-00000000/mine.txt"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (Path("gs://bucket/run"), "such as 'gs://bucket/run'"),
        ("gs:/bucket/run", "such as 'gs://bucket/run'"),
        ("gs://", "a place in a bucket"),
        ("gs:///run", "a place in a bucket"),
        ("gs://bucket/run-*", "without the characters"),  # fsspec would remove what matches
        ("gs://bucket/run[1]", "without the characters"),
        ("gs://bucket/run#1", "without the characters"),
        ("gs://bucket/a\0b", "must be a path"),
        ("az://bucket/run", "local files only .but checkpoints also at gs:// and s3://"),
    ],
)
def test_what_does_not_name_a_place_in_a_bucket_is_refused_by_name(given, line):
    with pytest.raises(ValueError, match=rf"(?s)directory .*{line}"):
        Checkpoint(given)


def test_a_scheme_in_capitals_and_a_slash_at_the_end_are_the_same_place():
    checkpoint.save("S3://bucket/run/", tree(1.0))
    assert value_at(URL) == 1.0


def test_without_etils_the_error_is_the_line_to_write():
    code = (
        "import sys; sys.modules['etils'] = None\n"
        "import solstice\n"
        "try: solstice.callbacks.Checkpoint('gs://bucket/run')\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "`pip install 'etils[epath-gcs,epath-s3]>=1.15'`" in done.stdout


# Runs


class Adds(solstice.Experiment):
    """Six steps in three epochs; `poison` comes in the fourth."""

    total: jnp.ndarray
    poison: float = 0.0

    def train_step(self, batch):
        total = self.total + batch.sum() + jnp.where(self.total > 8, self.poison, 0.0)
        return solstice.replace(self, total=total), {"loss": jnp.cos(total)}

    def eval_step(self, batch):
        return self, {"loss": batch.mean()}


DATA = [np.float32([1, 2]), np.float32([3, 4])]


def fit(saver, *, num_epochs=3, **options):
    history = solstice.callbacks.History()
    trainer = solstice.Trainer([saver, history])
    exp = trainer.fit(Adds(jnp.float32(0)), DATA, num_epochs=num_epochs, **options)
    return float(exp.total), trainer.history.rows


def saver(folder=URL, **options):
    return Checkpoint(folder, every=1, keep=2, monitor="train/loss", mode="min", **options)


def of_run():
    """The objects of a run by folder."""
    return sorted({tuple(name.split("/")[1:2]) for name in names()})


def without_times(rows):
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def test_a_run_in_a_bucket_is_a_run_on_a_disk(tmp_path):
    there, here = saver(), saver(tmp_path / "run")
    assert without_times(fit(there)[1]) == without_times(fit(here)[1])
    local = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert [name for (name,) in of_run()] == local
    for one, other in [(there.last, here.last), (there.best, here.best)]:
        assert str(one) == f"{URL}/{other.name}"
        assert checkpoint.diff(one, other) == {}
    assert str(saver().find("last")) == f"{URL}/step-6"


@pytest.mark.parametrize("resume", ["last", f"{URL}/step-4"])
def test_a_run_resumes_from_a_bucket_with_its_history(resume, tmp_path):
    fit(saver(), num_epochs=2)
    total, rows = fit(saver(), resume=resume, strict_resume=True)
    expected, whole = fit(saver(tmp_path / "run"))
    assert total == expected
    assert without_times(rows) == without_times(whole)


def test_a_run_in_a_bucket_has_its_steps_and_branches():
    expected, whole = fit(Checkpoint(URL, every=2, every_epochs=None))
    given = {"experiment": Adds(jnp.float32(0)), "train_ds": DATA}
    for step, total in ((1, 3.0), (4, 20.0), (5, 23.0)):
        found = solstice.at(URL, step=step, save=step == 5, **given)
        assert float(found.total) == total
    assert checkpoint.exists(f"{URL}/step-5")
    branch = f"{URL.rpartition('/')[0]}/branch"
    at = {"resume": URL, "at_step": 5, "branch": branch}
    for _ in range(2):  # it starts, and continues
        total, rows = fit(Checkpoint(branch), **at)
        assert total == expected
        assert without_times(rows) == without_times(whole)
    parent = solstice.runs.read(branch).parent
    assert parent == {"folder": URL, "step": 5, "changes": []}
    with pytest.raises(ValueError, match="saves into the run that this branch leaves"):
        fit(saver(), **at)


def test_the_note_of_a_checkpoint_in_a_bucket_can_be_saved_again(tmp_path):
    fit(saver(), num_epochs=2)
    note = checkpoint.manifest(f"{URL}/step-4")["note"]
    exp = checkpoint.load(f"{URL}/step-4", like=Adds(jnp.float32(0), jnp.float32(0)))
    for place in (tmp_path / "copy", "gs://other/copy"):
        checkpoint.save(place, exp, note=note)
        assert fit(saver(tmp_path / "run", overwrite=True), resume=place)[0] == 30.0


def test_a_new_run_is_refused_where_another_has_saved_unless_it_overwrites():
    fit(saver())
    with pytest.raises(CheckpointError, match="has the checkpoints of another run, up to step-6"):
        fit(saver())
    fit(saver(overwrite=True), num_epochs=1)
    assert str(saver().last) == f"{URL}/step-2"
    assert [name for (name,) in of_run()] == ["run.json", "step-1", "step-2"]


def test_a_run_is_described_and_listed(capsys):
    fit(saver(), num_epochs=1)
    before = solstice.runs.read(URL)
    fit(saver(), resume="last")
    after = solstice.runs.read(URL)
    assert (after.id, after.started_at, after.step) == (before.id, before.started_at, 6)
    assert main(["runs", "s3://bucket"]) == 0
    _, line = capsys.readouterr().out.splitlines()
    assert line.split()[0] == URL
    assert line.split()[-2:] == ["finished", "step-6"]


def test_a_new_run_never_overlooks_an_earlier_one():
    fit(Checkpoint(URL), num_epochs=1)
    there = dict(Bucket.objects)
    ends = [
        str(failed)
        for failed in faults(
            lambda: Bucket.objects.update(there),
            lambda: pytest.fail(f"it ran: {fit(Checkpoint(URL))}"),
            OSError("reset"),
        )
        if "OSError: reset" not in str(failed)
    ]
    # Operations after the refusal, which give the lock back, are not needed.
    assert all("has the checkpoints of another run" in end for end in ends)


def test_a_run_removes_what_a_killed_one_has_left_and_nothing_else():
    left = "/bucket/run/step-9/000001-00000000/arrays.safetensors"
    others = ["/bucket/run/step-9-keep/000001-00000000/arrays.safetensors", "/bucket/run/mine"]
    Bucket.objects.update(dict.fromkeys([left, *others], b"half"))
    fit(Checkpoint(URL), num_epochs=1)
    assert left not in Bucket.objects
    assert {*others} <= {*Bucket.objects}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:run.json, which describes the run")  # and the run goes on
@pytest.mark.parametrize("error", [Killed(), OSError("reset")], ids=str)
def test_a_run_that_fails_at_any_operation_resumes_to_the_same_end(error):
    def run(num_epochs):
        return fit(Checkpoint(URL, keep=1), num_epochs=num_epochs, resume="last")

    run(1)
    begun = dict(Bucket.objects)
    total, rows = run(3)
    ends = []
    for failed in faults(lambda: Bucket.objects.update(begun), lambda: run(2), error):
        ends.append(None if failed is None else type(failed))
        step = int(Checkpoint(URL).last.name.removeprefix("step-"))
        assert step == 4 if failed is None else step in (2, 4)
        again, all_rows = run(3)
        assert again == total
        assert without_times(all_rows) == without_times(rows)
        assert {name.split("/")[1] for name in names()} == {"run.json", "step-6"}
    assert {type(error), CheckpointError} & {*ends}


def test_a_run_gives_its_folder_up_to_a_newer_one():
    class Begins(solstice.Callback):
        """Another process begins a run there, and may end it."""

        def __init__(self, ends):
            self.ends = ends

        def on_step_end(self, record):
            if record.step == 3:
                other = "/bucket/run/.solstice.lock"
                Bucket.objects.pop(other) if self.ends else Bucket.objects.update({other: b"pid 7"})
                Bucket.lists = {}

    for ends, words in [(False, "pid 7"), (True, "it has ended since")]:
        Bucket.empty()
        trainer = solstice.Trainer([saver(), Begins(ends)])
        with pytest.raises(CheckpointError, match=f"another run began to save into .*{words}"):
            trainer.fit(Adds(jnp.float32(0)), DATA, num_epochs=3)
        assert str(saver().find("last")) in [f"{URL}/step-2", f"{URL}/step-3"]
        left = [name for name in names() if "lock" in name]
        assert len(left) == (0 if ends else 1)  # that of the other stays


def test_a_run_that_is_refused_takes_the_folder_from_nobody():
    fit(saver(), num_epochs=1)
    Bucket.objects["/bucket/run/.solstice.lock"] = b"pid 7"
    Bucket.lists = {}
    with pytest.raises(CheckpointError, match="has the checkpoints of another run"):
        fit(saver())
    assert Bucket.objects["/bucket/run/.solstice.lock"] == b"pid 7"


def test_two_checkpoints_of_a_trainer_need_two_folders():
    trainer = solstice.Trainer([saver(), saver(f"{URL}/")])
    with pytest.raises(CheckpointError, match=r"at once.*Checkpoint\('s3://bucket/run/a'"):
        trainer.fit(Adds(jnp.float32(0)), DATA, num_epochs=1)


def test_a_flight_is_recorded_and_replayed_in_a_bucket():
    exp = Adds(jnp.float32(0), poison=float("nan"))
    trainer = solstice.Trainer([NaNGuard(every=1), FlightRecorder(URL, every=1)])
    with pytest.raises(FloatingPointError) as raised:
        trainer.fit(exp, DATA, num_epochs=3)
    assert f"solstice.replay('{URL}', exp, train_ds)" in "".join(raised.value.__notes__)
    assert solstice.replay(URL, exp, DATA).nonfinite


def test_several_processes_are_refused_by_name(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    for action in (
        lambda: checkpoint.save(URL, tree(1.0)),
        lambda: checkpoint.begin(URL, tree(1.0)),
        lambda: checkpoint.check_writable(URL),
    ):
        with pytest.raises(CheckpointError, match="2 processes save into a folder that all"):
            action()
    assert names() == []
