"""A manifest with a right seal and wrong content is named by its entry, and nothing else comes out.

Another tool, a bug, or an attacker may have written it: the seal says only that it is whole.
"""

import copy
import json
import shutil
import subprocess
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import solstice
from solstice import checkpoint
from solstice.callbacks import Checkpoint, EarlyStopping, FlightRecorder
from solstice.checkpoint import CheckpointError
from solstice.checkpoint._files import seal
from solstice.loggers import CSV

pytest.importorskip("safetensors")


class Counts(solstice.Experiment):
    """One leaf of each kind that a checkpoint knows."""

    total: Any
    key: Any
    host: Any
    scalar: Any
    number: int
    rate: float
    is_new: bool

    def train_step(self, batch):
        new = solstice.replace(self, total=self.total + batch.sum())
        return new, {"loss": batch.mean(), "total": new.total}

    def eval_step(self, batch):
        return self, {"loss": batch.mean()}


def begin():
    host, scalar = np.arange(3), np.float32(2)
    return Counts(jnp.zeros(()), jax.random.key(0), host, scalar, 3, 0.5, True)


BATCHES = [np.full(2, i, np.float32) for i in range(4)]


def fit(folder, *, resume=None, max_steps=None):
    callbacks = [
        Checkpoint(folder / "run", every=2, every_epochs=None, monitor="val/loss"),
        EarlyStopping("val/loss", patience=9),
        CSV(folder / "run.csv"),
        solstice.History(),
    ]
    options = {"num_epochs": 2, "max_steps": max_steps, "resume": resume}
    return solstice.Trainer(callbacks).fit(begin(), BATCHES, BATCHES, **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a run that was saved within its second epoch."""
    folder = tmp_path_factory.mktemp("saved")
    fit(folder, max_steps=6)
    return folder


def manifest_in(folder):
    (path,) = (folder / "run").glob("step-6/manifest.json")
    return path, json.loads(path.read_text().split("\n", 1)[1])


def places(tree, at=()):
    """The path of each entry of a tree of dicts and lists."""
    yield at
    named = isinstance(tree, dict)
    for key, child in tree.items() if named else enumerate(tree if isinstance(tree, list) else ()):
        yield from places(child, (*at, key))


def deep():
    tree: Any = 0
    for _ in range(400):
        tree = [tree]
    return tree


CHANGES: dict[str, Any] = {
    "null": lambda _: None,
    "text": lambda _: "hostile",
    "a kind": lambda _: "int",
    "-1": lambda _: -1,
    "2^70": lambda _: 2**70,
    "a float": lambda _: 0.5,
    "NaN": lambda _: float("nan"),
    "true": lambda _: True,
    "a list": lambda old: [old],
    "an empty list": lambda _: [],
    "a table": lambda old: {"x": old},
    "an empty table": lambda _: {},
    "an array": lambda _: {"array": ["float32", [-3], "AAAA"]},
    "a deep list": lambda _: deep(),
}


def changed(manifest, place, how):
    """A copy with one entry changed, or dropped."""
    if not place:
        return CHANGES.get(how, lambda _: {})(manifest)
    new = copy.deepcopy(manifest)
    inner = new
    for key in place[:-1]:
        inner = inner[key]
    if how == "dropped":
        del inner[place[-1]]
    else:
        inner[place[-1]] = CHANGES[how](inner[place[-1]])
    return new


HOW = [*CHANGES, "dropped"]


def test_load_takes_no_entry_for_another(tmp_path):
    """Each entry that `load` reads, in all ways: a named error, or the very tree."""
    checkpoint.save(tmp_path / "run" / "step-6", begin(), note={"a": 1})
    path, manifest = manifest_in(tmp_path)
    whole = checkpoint.load(path.parent, like=begin())
    named = 0
    for place in [p for p in places(manifest) if p[:1] != ("note",)]:
        for how in HOW:
            path.write_text(seal(changed(manifest, place, how)))
            try:
                assert isinstance(checkpoint.diff(path.parent, whole), dict)
                found = checkpoint.load(path.parent, like=begin())
            except CheckpointError as error:
                assert str(path.parent) in str(error)  # noqa: PT017, most raise and some do not
                named += 1
            else:
                assert checkpoint.diff(found, whole) == {}, (place, how)
    assert named > 500


KINDS = {"int": 3, "float": 0.5, "bool": True, "complex": 1j, "scalar": np.float64(1)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("array", [np.arange(3.0), np.ones((), np.float32), np.uint8([51, 46])])
def test_an_array_is_not_taken_for_a_number(tmp_path, kind, array):
    """Also where the tree to load into has such a number there."""
    folder = checkpoint.save(tmp_path / "run", {"a": array})
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text().split("\n", 1)[1])
    manifest["leaves"]["['a']"]["kind"] = kind
    manifest["described"] = {}
    path.write_text(seal(manifest))
    with pytest.raises(CheckpointError):
        checkpoint.load(folder, like={"a": KINDS[kind]}, only="*")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    return tmp_path_factory.mktemp("room")


def outcome(saved, room, place, how):
    """What a resumed run ends with: its total, or an error that names a file."""
    shutil.rmtree(room, ignore_errors=True)
    shutil.copytree(saved, room)
    path, manifest = manifest_in(room)
    path.write_text(seal(changed(manifest, place, how)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what cannot be resumed exactly
        try:
            return float(fit(room, resume=path.parent).total)
        except CheckpointError as error:
            return error
        except ValueError as error:  # of a logger, whose rows are not those in the state
            if "is not the file of the resumed run" not in str(error):
                raise
            return error


def check(saved, room, place, how):
    found = outcome(saved, room, place, how)
    if isinstance(found, Exception):
        assert str(room) in str(found), (place, how, found)
    else:
        assert found == 24 or (how, place[-1]) == ("true", "is_closed"), (place, how)


def run_places(saved):
    _, manifest = manifest_in(saved)
    return [p for p in places(manifest) if p[:1] == ("note",)]


def test_a_resumed_run_takes_no_entry_of_its_data_for_another(saved, room):
    """All that says where the data set stands, one by one."""
    entries = [p for p in run_places(saved) if p[:3] == ("note", "run", "data") and len(p) <= 8]
    assert len(entries) > 20
    for place in entries:
        for how in HOW:
            check(saved, room, place, how)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_resumed_run_takes_no_entry_for_another(saved, room, data):
    place = data.draw(st.sampled_from(run_places(saved)))
    check(saved, room, place, data.draw(st.sampled_from(HOW)))


def test_a_resumed_run_reads_its_devices_beside_entries_it_does_not_know(saved, room):
    entries = [p for p in run_places(saved) if p[:3] == ("note", "run", "computation")]
    assert len(entries) > 10
    for place in entries:
        for how in ("text", "dropped"):
            check(saved, room, place, how)


def test_names_that_are_too_long_are_told(tmp_path):
    long = tmp_path / ("a" * 300)
    for use in (
        lambda: checkpoint.save(long, begin()),
        lambda: checkpoint.load(long, like=begin()),
        lambda: checkpoint.manifest(long),
    ):
        with pytest.raises(CheckpointError, match="too long"):
            use()


OPEN = """
import os, socket, sys
from pathlib import Path
import numpy as np
import solstice
from solstice import checkpoint
from solstice.loggers import CSV, JSONLines

class Null(solstice.Experiment):
    def train_step(self, batch): return self, {"loss": batch.mean()}
    def eval_step(self, batch): return self, {}

def bind(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))

def log(logger):
    solstice.Trainer([logger]).fit(Null(), [np.ones(2, np.float32)])

kinds = {
    "a named pipe": os.mkfifo,
    "a socket": bind,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}
uses = {
    "load arrays.safetensors": lambda path: checkpoint.load(path.parent, like={"a": np.ones(3)}),
    "load manifest.json": lambda path: checkpoint.load(path.parent, like={"a": np.ones(3)}),
    "replay manifest.json": lambda path: solstice.replay(path.parent, Null(), [np.ones(2)]),
    "resume manifest.json": lambda path: solstice.Trainer().fit(
        Null(), [np.ones(2)], resume=path.parent
    ),
    "read_history table": solstice.read_history,
    "CSV table": lambda path: log(CSV(path)),
    "JSONLines table": lambda path: log(JSONLines(path)),
}
os.chdir(sys.argv[1])  # the path of a socket may have 108 characters
for number, (kind, make) in enumerate(kinds.items()):
    for what, use in uses.items():
        folder = checkpoint.save(f"{number} {what}", {"a": np.ones(3)})
        path = folder / what.split()[1]
        path.unlink(missing_ok=True)
        make(path)
        try:
            use(path)
            print("nothing was raised", kind, what)
        except Exception as error:
            is_named = isinstance(error, (checkpoint.CheckpointError, OSError))
            text = f"{path.name} is not a file: it is {kind}" in str(error)
            text = text or f"{path.name} is {kind}: name a file in it" in str(error)
            print("named" if is_named and text else repr(error), kind, what, flush=True)
"""


def test_what_is_not_a_file_is_refused_at_once(tmp_path):
    """In a process of its own: reading a pipe in Rust's code heeds no signal."""
    command = [sys.executable, "-c", OPEN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) == 28, done.stdout + done.stderr[-2000:]
    assert [line for line in lines if not line.startswith("named")] == []


def test_a_flight_that_is_not_one_is_told(tmp_path):
    class Fails(solstice.Callback):
        phase = solstice.Phase.SAVE

        def on_step_end(self, record):
            raise RuntimeError("as asked")

    with pytest.raises(RuntimeError, match="as asked"):
        solstice.Trainer([FlightRecorder(tmp_path / "run"), Fails()]).fit(begin(), BATCHES)
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text().split("\n", 1)[1])
    for place in [("flight",), ("flight", "failed_at"), ("flight", "error"), ("run", "epoch")]:
        for how in ["null", "a list", "dropped", "-1"]:
            path.write_text(seal(changed(manifest, ("note", *place), how)))
            with pytest.raises(CheckpointError):
                solstice.replay(tmp_path / "run", begin(), BATCHES)


def test_names_of_metrics_are_text_in_a_notebook():
    history = solstice.History()
    bad = "<img src=x onerror=alert(1)>&"
    history.rows = [{"step": 1, "epoch": 0, "mode": "train", "span": "epoch", bad: 0.5}]
    assert "<img" not in history._repr_html_()
    assert "train/&lt;img src=x onerror=alert(1)&gt;&amp;" in history._repr_html_()
