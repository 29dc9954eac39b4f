"""The folder of a run: what run.json says, whatever happens to the run, and how it is printed."""

import argparse
import dataclasses
import enum
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import solstice
from solstice import metrics, runs
from solstice.__main__ import main
from solstice._plain import from_plain
from solstice.callbacks import Checkpoint
from solstice.checkpoint import CheckpointError
from solstice.loggers import CSV, JSONLines, Logger

pytest.importorskip("safetensors")

DATA = [np.full(2, value, np.float32) for value in (3, 1, 2)]


class Adds(solstice.Experiment):
    """The loss of an epoch is that of its number, at first falling and then rising."""

    total: jax.Array
    rate: float = 0.5

    def train_step(self, batch):
        total = self.total + self.rate * batch.mean()
        return solstice.replace(self, total=total), {
            "loss": (total - 5) ** 2,
            "all": metrics.Collect(all=batch),
        }

    def eval_step(self, batch):
        return self, {"accuracy": -jnp.abs(self.total - 5)}


ADDS = Adds(jnp.zeros(()))


def fit(*callbacks, num_epochs=3, hyperparameters=None, exp=ADDS, val=DATA[:1], **options):
    trainer = solstice.Trainer(callbacks, hyperparameters=hyperparameters)
    trainer.fit(exp, DATA, val, num_epochs=num_epochs, **options)
    return trainer


class Raises(solstice.Callback):
    """Raises an error at the end of an epoch."""

    phase = solstice.Phase.MONITOR

    def __init__(self, error, epoch=1):
        self.error, self.epoch = error, epoch

    def on_epoch_end(self, record):
        if record.mode == "train" and record.epoch == self.epoch:
            raise self.error


# --- Hyper-parameters ---


@dataclasses.dataclass
class Inner:
    rate: float
    steps: int | None


class Kind(enum.Enum):
    SMALL = 1


NAMES = st.text(st.characters(exclude_characters="."), max_size=3)  # which joins the nested ones
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner),
    max_leaves=8,
)
TABLES = st.dictionaries(NAMES, VALUES, max_size=4)


def given_to(hyperparameters):
    return solstice.Trainer(hyperparameters=hyperparameters).hyperparameters


@given(TABLES)
def test_values_of_json_are_kept_as_they_are(table):
    found = given_to(table)
    assert found == table
    assert repr(json.loads(json.dumps(found))) == repr(found)  # with their types


@given(TABLES)
def test_a_namespace_and_a_dataclass_are_the_dict_of_their_fields(table):
    assert given_to(argparse.Namespace(**table)) == table
    names = [f"field_{i}" for i in range(len(table))]
    kind = dataclasses.make_dataclass("Config", names)
    assert given_to(kind(*table.values())) == dict(zip(names, table.values(), strict=True))


def test_what_json_does_not_have_becomes_text_and_numbers():
    found = given_to({
        "inner": Inner(1e-3, None),
        "items": (1, (2.5, "x"), range(2), np.str_("y")),
        "path": Path("a") / "b",
        "kind": Kind.SMALL,
        "dtypes": [jnp.bfloat16, np.float32, np.dtype("int8")],
        "function": jax.nn.relu,
        "class": Inner,
        "numbers": [np.float32(0.5), np.int64(3), np.arange(2), jnp.ones(2, jnp.bfloat16)],
        "flags": np.array([True]),
    })  # fmt: skip
    assert found == {
        "inner": {"rate": 1e-3, "steps": None},
        "items": [1, [2.5, "x"], [0, 1], "y"],
        "path": str(Path("a/b")),
        "kind": "SMALL",
        "dtypes": ["bfloat16", "float32", "int8"],
        "function": f"{jax.nn.relu.__module__}.relu",
        "class": f"{__name__}.Inner",
        "numbers": [0.5, 3, [0, 1], [1.0, 1.0]],
        "flags": [True],
    }
    assert all(type(x) in (float, int, list) for x in found["numbers"])


def test_a_config_changed_after_the_trainer_was_made_changes_nothing(tmp_path):
    config = {"layers": [1, 2]}
    trainer = solstice.Trainer([Checkpoint(tmp_path)], hyperparameters=config)
    config["layers"].append(3)
    trainer.hyperparameters["more"] = 1
    trainer.fit(ADDS, DATA)
    assert trainer.history.hyperparameters == {"layers": [1, 2]}
    assert runs.read(tmp_path).hyperparameters == {"layers": [1, 2]}


class Shows(Logger):
    """A tool of a third party."""

    def __init__(self):
        super().__init__()
        self.starts = []

    def open(self, start):
        self.starts.append(start)

    def write(self, row):
        pass


def test_a_resumed_run_keeps_them_or_says_what_changed(tmp_path, caplog):
    before = {"net": {"width": 8}, "rate": 0.5}
    logger = Shows()
    fit(Checkpoint(tmp_path), logger, hyperparameters=before)
    noted = solstice.checkpoint.manifest(tmp_path / "step-9")["note"]["hyperparameters"]
    assert noted == before

    again = fit(Checkpoint(tmp_path), logger, num_epochs=4, resume="last", strict_resume=True)
    assert again.history.hyperparameters == runs.read(tmp_path).hyperparameters == before
    assert "other hyperparameters" not in caplog.text

    after = {"net": {"width": 16}, "rate": 0.5, "seed": 1}
    again = fit(
        Checkpoint(tmp_path),
        logger,
        num_epochs=5,
        resume="last",
        strict_resume=True,  # they change nothing in the run
        hyperparameters=after,
    )
    assert again.history.hyperparameters == runs.read(tmp_path).hyperparameters == after
    said = "with other hyperparameters: net.width was 8, and is 16; seed was not given, and is 1"
    assert said in caplog.text
    kinds = [(start.kind, start.hyperparameters) for start in logger.starts]
    assert kinds == [("new", before), ("resumed", before), ("resumed", after)]


def test_a_run_that_fails_early_leaves_those_of_the_run_before():
    class Fails(solstice.Callback):
        def on_fit_start(self, record):
            raise KeyError("as asked")

    history = solstice.History()
    fit(history, hyperparameters={"rate": 0.5})
    rows = list(history.rows)
    with pytest.raises(KeyError):
        fit(history, Fails(), hyperparameters={"rate": 1})
    assert (list(history.rows), history.hyperparameters) == (rows, {"rate": 0.5})


# --- run.json ---


def test_it_says_what_the_run_is_and_how_it_went(tmp_path):
    before = time.time()
    trainer = fit(Checkpoint(tmp_path), num_epochs=4, hyperparameters={"rate": 0.5}, max_steps=11)
    info = runs.read(tmp_path)
    assert before <= info.started_at <= info.updated_at <= time.time()
    assert (info.ended, info.step, info.epoch) == ("finished", 11, 3)
    assert (info.num_epochs, info.max_steps, info.parent) == (4, 11, None)
    assert info.process["pid"] == os.getpid()
    assert info.command == sys.orig_argv
    assert info.versions["jax"] == jax.__version__
    assert info.versions.items() >= solstice.checkpoint.versions().items()
    saved = solstice.checkpoint.manifest(tmp_path / "step-9")["note"]["run"]
    assert info.computation == from_plain(saved["computation"])
    assert info.computation["scalars"] == {".total": 0.0, ".rate": 0.5}
    for part in ("identity", "validation"):
        assert info.data[part] == from_plain(saved["data"])[part]
    assert (info.data["identity"]["length"], info.data["validation"]["length"]) == (3, 1)
    for name in ("train/loss", "val/accuracy"):
        best = trainer.history.best(name)
        column = name.partition("/")[2]
        newest = trainer.history.series(name)[1][-1]
        found = {"newest": newest, "best": best[column], "best_epoch": best["epoch"]}
        assert info.metrics[name] == found
    assert {*info.metrics} == {"train/loss", "val/accuracy"}  # and no array

    tested = trainer.test(trainer.experiment, DATA)
    after = runs.read(tmp_path)
    assert after.metrics["test/accuracy"]["newest"] == tested["accuracy"]
    assert after.metrics.items() >= info.metrics.items()
    assert (after.ended, after.step, after.id) == (info.ended, info.step, info.id)


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (None, "finished"),
        (solstice.Stop("it diverged"), "stopped: it diverged"),
        (solstice.Stop(), "stopped"),
        (KeyError("x"), "failed: KeyError: 'x'"),
        (RuntimeError(), "failed: RuntimeError"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(143), "interrupted"),
    ],
    ids=repr,
)
def test_it_says_how_the_run_ended(tmp_path, error, ended):
    callbacks = [JSONLines(tmp_path / "rows.jsonl"), *([] if error is None else [Raises(error)])]
    if error is None or isinstance(error, solstice.Stop):
        fit(*callbacks)
    else:
        with pytest.raises(type(error)):
            fit(*callbacks)
    info = runs.read(tmp_path)
    assert info.ended == ended
    assert info.step == (9 if error is None else 6)
    assert info.metrics["train/loss"]["best_epoch"] == 1


def wait_for(folder, is_it=lambda info: True):
    """The file, which a thread writes, once it is there and has what is looked for."""
    while True:
        if (Path(folder) / "run.json").exists() and is_it(info := runs.read(folder)):
            return info
        time.sleep(0.001)


class Watches(solstice.Callback):
    """Reads the file in the middle of the run."""

    def __init__(self, folder):
        self.folder, self.found = folder, None

    def on_epoch_start(self, record):
        self.found = self.found or wait_for(self.folder)


def test_it_is_there_from_the_start_of_the_run(tmp_path):
    watches = Watches(tmp_path)
    fit(CSV(tmp_path / "rows.csv"), watches, hyperparameters={"rate": 0.5})
    assert watches.found.hyperparameters == {"rate": 0.5}
    assert (watches.found.ended, watches.found.step, watches.found.metrics) == (None, 0, {})
    assert watches.found.computation == runs.read(tmp_path).computation


def test_it_is_kept_after_validations_within_an_epoch(tmp_path):
    class Ends(solstice.Callback):
        def on_epoch_end(self, record):
            if record.mode == "val" and record.step == 2:
                found.append(wait_for(tmp_path, lambda info: info.metrics))

    found = []
    solstice.Trainer([CSV(tmp_path / "rows.csv"), Ends()], val_every_n_steps=1).fit(
        ADDS, DATA, DATA
    )
    assert (found[0].step, found[0].ended) == (1, None)
    assert {*found[0].metrics} == {"val/accuracy"}


def test_short_epochs_do_not_write_it_each_time(tmp_path):
    class Counts(solstice.Callback):
        def on_epoch_end(self, record):
            if (tmp_path / "run.json").exists():
                seen.add((tmp_path / "run.json").stat().st_mtime_ns)

    seen, began = set(), time.monotonic()
    fit(CSV(tmp_path / "rows.csv"), Counts(), num_epochs=100)
    assert len(seen) <= 3 + time.monotonic() - began  # the start, an epoch, and one each second


def test_a_data_set_that_cannot_be_described_never_ends_the_run(tmp_path):
    class Odd(solstice.data.Batches):
        def describe(self):
            raise RuntimeError("as asked")

    data = Odd(np.ones((6, 2), np.float32), 2)
    with pytest.warns(
        UserWarning, match=r"run\.json, which describes the run, .*as asked"
    ) as caught:
        solstice.Trainer([CSV(tmp_path / "rows.csv")]).fit(ADDS, data)
    assert len(caught) == 1
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 2


def test_each_folder_of_a_run_has_it(tmp_path):
    logger = CSV(tmp_path / "logs/rows.csv")
    callbacks = [Checkpoint(tmp_path / "a"), logger, JSONLines(tmp_path / "a/rows.jsonl")]
    fit(*callbacks)
    one, other = runs.read(tmp_path / "a"), runs.read(tmp_path / "logs")
    assert one == other
    assert not (tmp_path / "logs/run-1.json").exists()

    (tmp_path / "link").symlink_to(tmp_path / "a")  # another path of the same folder
    fit(*callbacks, num_epochs=4, resume=tmp_path / "link/step-9")
    again = runs.read(tmp_path / "a")
    assert again == runs.read(tmp_path / "logs")
    assert (again.id, again.started_at, again.step) == (one.id, one.started_at, 12)
    assert again.updated_at > one.updated_at
    assert again.metrics["train/loss"]["best"] == one.metrics["train/loss"]["best"]
    assert not list(tmp_path.glob("*/run-*.json"))


def test_a_new_run_sets_the_file_of_an_earlier_one_aside(tmp_path):
    fit(Checkpoint(tmp_path), hyperparameters={"number": 1})
    first = (tmp_path / "run.json").read_bytes()
    fit(Checkpoint(tmp_path, overwrite=True), hyperparameters={"number": 2})
    second = runs.read(tmp_path)
    assert (tmp_path / "run-1.json").read_bytes() == first
    assert second.hyperparameters == {"number": 2}
    assert second.id != json.loads(first)["id"]

    # One that continues a checkpoint of another folder is another run.
    fit(Checkpoint(tmp_path / "b"), num_epochs=4, resume=tmp_path / "step-9")
    assert runs.read(tmp_path / "b").id != second.id
    assert runs.read(tmp_path) == second


def test_two_runs_in_one_folder_are_said_once(tmp_path):
    class Other(solstice.Callback):
        """Another run begins there, and ends, in the middle of this one."""

        def on_epoch_end(self, record):
            if record.mode == "train" and record.epoch == 0:
                wait_for(tmp_path)
                fit(CSV(tmp_path / "other.csv"), hyperparameters={"who": "other"})

    with pytest.warns(UserWarning, match="another run writes .*run.json") as caught:
        fit(CSV(tmp_path / "one.csv"), Other(), hyperparameters={"who": "one"})
    assert len(caught) == 1
    assert runs.read(tmp_path).hyperparameters == {"who": "other"}
    assert json.loads((tmp_path / "run-1.json").read_text())["hyperparameters"] == {"who": "one"}


def test_a_file_that_cannot_be_written_never_ends_the_run(tmp_path):
    (tmp_path / ".run.json.new").mkdir()
    with pytest.warns(UserWarning, match=r"run\.json, which describes the run") as caught:
        trainer = fit(CSV(tmp_path / "rows.csv"), num_epochs=4)
    assert len(caught) == 1
    assert len(trainer.history.rows) == 8


def test_what_another_program_has_there_stays(tmp_path):
    (tmp_path / "run.json").write_text("mine")
    (tmp_path / "run-1.json").mkdir()
    fit(CSV(tmp_path / "rows.csv"))
    assert runs.read(tmp_path).ended == "finished"
    assert (tmp_path / "run-2.json").read_text() == "mine"


def test_without_a_folder_of_a_run_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = fit(Raises(solstice.Stop()), hyperparameters={"rate": 0.5})
    trainer = solstice.Trainer([CSV("rows.csv")], fast_dev_run=True, hyperparameters={"rate": 1})
    trainer.fit(ADDS, DATA)
    solstice.Trainer([CSV("a/rows.csv")]).test(ADDS, DATA)  # which is not a run of training
    fit(CSV("plain.csv"))  # the working directory is not that of one run
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "plain.csv", "rows.csv"]


def test_a_callback_of_a_third_party_names_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Saves(solstice.Callback):
        run_folder = "mine"

        def on_fit_start(self, record):
            (tmp_path / "elsewhere").mkdir()

        def on_epoch_end(self, record):
            os.chdir(tmp_path / "elsewhere")

    fit(Saves())
    assert runs.read(tmp_path / "mine").ended == "finished"
    assert not (tmp_path / "elsewhere/mine").exists()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    fit(CSV(folder / "rows.csv"), hyperparameters={"rate": math.nan, "text": "\u00e9"})
    return (folder / "run.json").read_text()


@given(st.data())
def test_a_damaged_file_is_a_named_error(written, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    table = json.loads(written)
    how = data.draw(st.sampled_from(["cut", "gone", "other", "text"]))
    if how == "cut":
        text = written[: data.draw(st.integers(0, len(written) - 2))]
    elif how == "text":
        text = data.draw(st.text())
    else:
        must = {"format", "version", "id", "started_at", "step", "hyperparameters", "ended"}
        name = data.draw(st.sampled_from(sorted(must)))
        if how == "gone":
            del table[name]
        else:
            table[name] = data.draw(st.sampled_from([-1, [1], [{}]]))
        text = json.dumps(table)
    (folder / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"run\.json"):
        runs.read(folder)
    shutil.rmtree(folder)


def test_what_is_not_the_folder_of_a_run_is_said(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"has no run\.json, so it is not the folder of a run"
    ):
        runs.read(tmp_path)
    (tmp_path / "run.json").write_text('{"format": "other", "version": 1}')
    with pytest.raises(CheckpointError, match="it has the format 'other', version 1"):
        runs.read(tmp_path)
    (tmp_path / "run.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"run\.json cannot be read"):
        runs.read(tmp_path)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_it_has_the_commit_of_the_working_directory(tmp_path, monkeypatch):
    def git(*arguments):
        who = ["-c", "user.name=me", "-c", "user.email=me@example.com"]
        command = ["git", *who, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    fit(CSV("runs/a/rows.csv"), num_epochs=1)
    assert runs.read("runs/a").git is None
    git("init", "-q")
    Path("train.py").write_text("1")
    git("add", "train.py")
    git("commit", "-qm", "first")
    fit(CSV("runs/b/rows.csv"), num_epochs=1)
    assert runs.read("runs/b").git == {"commit": git("rev-parse", "HEAD"), "is_dirty": False}
    Path("train.py").write_text("2")
    fit(CSV("runs/c/rows.csv"), num_epochs=1)
    assert runs.read("runs/c").git == {"commit": git("rev-parse", "HEAD"), "is_dirty": True}


# --- The command line ---

DIES = """
import importlib, os, signal, sys
sys.path.insert(0, sys.argv[2])
t = importlib.import_module(sys.argv[3])  # by the name of its classes in a checkpoint

class Dies(t.solstice.Callback):
    phase = t.solstice.Phase.SAVE
    def on_epoch_end(self, record):
        if record.epoch == 1 and record.mode == "train":
            t.wait_for(sys.argv[1], lambda info: info.metrics)
            print("here", flush=True)
            sys.stdin.readline()
            os.kill(os.getpid(), signal.SIGKILL)

t.fit(t.Checkpoint(sys.argv[1], every=1, every_epochs=None), Dies(), hyperparameters={"rate": 0.5})
"""


def printed(capsys, *arguments):
    """The exit code, and what is printed without the padding."""
    code = main(arguments)
    out = capsys.readouterr()
    return code, [" ".join(line.split()) for line in out.out.splitlines()], out.err


def test_a_killed_run_is_named_and_can_be_resumed(tmp_path, capsys):
    place = Path(__file__).parents[__name__.count(".")]
    command = [sys.executable, "-c", DIES, str(tmp_path / "a"), str(place), __name__]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "here\n"
    _, lines, _ = printed(capsys, "runs", str(tmp_path))
    assert " running step-" in lines[1]
    process.communicate("\n")
    assert process.returncode == -signal.SIGKILL
    assert runs.read(tmp_path / "a").ended is None
    for lock in (tmp_path / "a/.solstice.lock", None):  # without it, the process is looked for
        code, (head, line), _ = printed(capsys, "runs", str(tmp_path))
        assert code == 0
        assert head == "run started steps val/accuracy train/loss ended checkpoint"
        assert line.startswith(f"{tmp_path / 'a'} 20")
        assert " killed step-" in line
        if lock is not None:
            lock.unlink()
    fit(Checkpoint(tmp_path / "a", every=1, every_epochs=None), resume="last")
    _, (_, line), _ = printed(capsys, "runs", str(tmp_path))
    assert line.endswith("finished step-9")


def test_the_table_has_the_runs_by_their_start_with_their_best_metrics(tmp_path, capsys):
    trainer = fit(Checkpoint(tmp_path / "z/first"), hyperparameters={"net": {"width": 8}})
    with pytest.raises(KeyError):
        fit(JSONLines(tmp_path / "a/rows.jsonl"), Raises(KeyError("x" * 100)), val=None)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/run.json").write_text("{}")
    code, (_, first, second, broken), _ = printed(capsys, "runs", str(tmp_path))
    best = trainer.history.best("val/accuracy")["accuracy"]
    loss = trainer.history.best("train/loss")["loss"]
    assert code == 0
    assert first.startswith(f"{tmp_path / 'z/first'} ")
    assert first.endswith(f" 9 {best:.4g} {loss:.4g} finished step-9")
    assert second.startswith(f"{tmp_path / 'a'} ")
    assert " 6 " in second
    assert second.endswith("failed: KeyError: '" + "x" * 38 + "...")
    assert broken.startswith(f"{tmp_path / 'broken'} unreadable: ")

    code, lines, _ = printed(capsys, "show", str(tmp_path / "z/first"))
    assert code == 0
    assert "net.width 8" in lines
    assert f"resume `trainer.fit(..., resume={str(tmp_path / 'z/first/step-9')!r})`" in lines
    digest = runs.read(tmp_path / "z/first").computation["steps"]["train_step"]["digest"]
    assert f"train_step {digest[:12]}" in lines
    row = trainer.history.best("val/accuracy")
    newest = trainer.history.series("val/accuracy")[1][-1]
    assert f"val/accuracy {newest:.4g} {best:.4g} {row['epoch'] + 1}" in lines
    assert f"jax {jax.__version__}" in lines


@pytest.mark.parametrize("command", ["runs", "show"])
def test_a_folder_without_runs_is_an_error(tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "missing"):
        code, lines, error = printed(capsys, command, folder)
        assert (code, lines) == (1, [])
        assert folder in error
    if command == "runs":
        assert "'runs'" in printed(capsys, command)[2]  # the default


ODD = [None, "x", [1], {}, 1e400]
TABLES_OF_ANYTHING = [
    {"a": {"b": [1]}},
    {"val/loss": {"best": 1}, "loss": {"newest": math.nan, "best_epoch": 1e400}},
    *(
        {name: odd}
        for name in ("is_dirty", "pid", "host", "steps", "scalars", "identity", "changes", "folder")
        for odd in ODD
    ),
]


@given(
    st.dictionaries(
        st.sampled_from([f.name for f in dataclasses.fields(runs.RunInfo)]),
        st.sampled_from([None, 1, "x", {}, [], *TABLES_OF_ANYTHING, 1e400, ["x"]]),
    )
)
def test_a_file_of_any_content_is_shown_or_refused(written, tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("any")
    (folder / "run.json").write_text(json.dumps({**json.loads(written), **changes}))
    assert main(["runs", str(folder)]) == 0
    assert main(["show", str(folder)]) in (0, 1)
    shutil.rmtree(folder)
