"""Lists that only grow: each row is written once, and each checkpoint has all of its rows."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice import checkpoint
from solstice._plain import from_plain, to_plain
from solstice.callbacks import Checkpoint, History
from solstice.checkpoint import AppendOnly, CheckpointError
from solstice.checkpoint._rows import held, read_rows

pytest.importorskip("safetensors")

TREE = {"a": np.zeros(2, np.float32)}


def save(folder, state):
    return checkpoint.save(folder, TREE, note={"state": to_plain(state, "X.state_dict()", held)})


def rows_in(folder):
    plain = checkpoint.manifest(folder)["note"]["state"]
    return from_plain(plain, lambda about: read_rows(folder, about))


def plain(value):
    return json.dumps(to_plain(value, ""))


# What may happen between two saves, and what may happen to the folders

STEPS = st.lists(
    st.sampled_from(["rows", "save", "again", "copy", "links", "gone", "moved", "no links"]),
    max_size=25,
)


@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_each_checkpoint_has_its_own_rows_whatever_happens_to_the_others(tmp_path_factory, steps):
    root = tmp_path_factory.mktemp("rows")
    folder, rows, expected, count = root / "a", AppendOnly(), {}, 0
    link = os.link
    for index, step in enumerate(steps):
        newest = folder / f"step-{count}"
        if step == "rows":
            rows.extend({"step": index, "loss": index / 7, "x": np.arange(i)} for i in range(3))
        elif step in ("save", "again", "no links"):
            count += step != "again"
            if step == "no links":
                os.link = refuses
            path = save(folder / f"step-{count}", {"rows": rows})
            os.link = link
            expected[path] = plain(rows)
        elif newest not in expected:
            continue
        elif step in ("copy", "links"):
            function = link if step == "links" else shutil.copy2
            shutil.copytree(newest, root / f"copy-{index}", copy_function=function)
            expected[root / f"copy-{index}"] = expected[newest]
        elif step == "gone":
            shutil.rmtree(newest)
            del expected[newest]
        elif step == "moved":
            expected[newest.rename(root / f"moved-{index}")] = expected.pop(newest)
    assert {path: plain(rows_in(path)["rows"]) for path in expected} == expected


def refuses(*args):
    raise PermissionError("a file system without links")


class Counted(Mapping):
    """A row that counts how often it is written."""

    written = 0

    def __getitem__(self, name):
        return 0.5

    def __iter__(self):
        Counted.written += 1
        return iter(["loss"])

    def __len__(self):
        return 1


@pytest.mark.parametrize("has_links", [True, False])
def test_a_save_writes_the_new_rows_alone(tmp_path, monkeypatch, has_links):
    rows, Counted.written = AppendOnly(), 0
    if not has_links:
        monkeypatch.setattr(os, "link", refuses)
    for step in range(30):
        rows.append(Counted())
        save(tmp_path / f"step-{step}", {"rows": rows})
    assert Counted.written == 30
    files = {(tmp_path / f"step-{i}" / "rows-1.jsonl").stat().st_ino for i in range(30)}
    assert len(files) == (1 if has_links else 30)
    first, last = ((tmp_path / f"step-{i}" / "manifest.json").stat().st_size for i in (1, 29))
    assert last - first < 20
    # In a folder of its own, another saver starts afresh, once.
    for step in range(3):
        save(tmp_path / "b" / f"step-{step}", {"rows": rows})
    assert Counted.written == 60


def test_rows_that_another_checkpoint_has_are_never_written_again(tmp_path):
    """A run that goes on from an earlier checkpoint, in the same folder."""
    rows = AppendOnly([{"loss": 1.0}])
    save(tmp_path / "step-1", {"rows": rows})
    rows.append({"loss": 2.0})
    save(tmp_path / "step-2", {"rows": rows})
    again = AppendOnly(rows_in(tmp_path / "step-1")["rows"])
    again.append({"loss": 3.0})
    save(tmp_path / "step-3", {"rows": again})
    found = [rows_in(tmp_path / f"step-{i}")["rows"] for i in (1, 2, 3)]
    assert [[row["loss"] for row in rows] for rows in found] == [[1.0], [1.0, 2.0], [1.0, 3.0]]


def test_a_note_has_the_rows_of_its_moment(tmp_path):
    rows, other = AppendOnly([1]), AppendOnly(["x"])
    note = {"state": to_plain({"a": rows, "b": (other, rows), "c": [1]}, "", held)}
    rows.append(2)
    save(tmp_path / "later", {"a": rows})
    checkpoint.save(tmp_path / "earlier", TREE, note=note)
    assert rows_in(tmp_path / "earlier") == {"a": [1], "b": (["x"], [1]), "c": [1]}
    assert rows_in(tmp_path / "later") == {"a": [1, 2]}


@pytest.mark.parametrize("kind", ["other", "longer", "shorter"])
def test_a_file_that_somebody_else_wrote_is_not_added_to(tmp_path, kind):
    rows = AppendOnly([1, 2])
    path = save(tmp_path / "step-1", {"rows": rows}) / "rows-1.jsonl"
    mine = path.read_bytes()
    path.unlink()
    path.write_bytes({"other": b"9\n9\n", "longer": mine + b"9\n", "shorter": mine[:2]}[kind])
    rows.append(3)
    save(tmp_path / "step-2", {"rows": rows})
    assert rows_in(tmp_path / "step-2") == {"rows": [1, 2, 3]}


@pytest.mark.parametrize("damage", ["gone", "cut", "bit", "folder", "link"])
def test_rows_that_are_damaged_are_named_and_the_weights_are_whole(tmp_path, damage):
    path = save(tmp_path / "step-1", {"rows": AppendOnly([1.5, 2.5])})
    file = path / "rows-1.jsonl"
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.unlink()
    if damage in ("cut", "bit"):
        file.write_bytes(data[:-1] if damage == "cut" else data)
    elif damage == "folder":
        file.mkdir()
    elif damage == "link":
        file.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"step-1 cannot be resumed: the rows of its history"):
        rows_in(path)
    assert checkpoint.diff(checkpoint.load(path, like=TREE), TREE) == {}


@pytest.mark.parametrize("about", [{}, {"file": "../rows-1.jsonl"}, {"file": "rows-1.jsonl"}, 3])
def test_a_manifest_that_speaks_of_no_rows_is_named(tmp_path, about):
    save(tmp_path / "step-1", {"rows": AppendOnly([1])})
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        read_rows(tmp_path / "step-1", about)


@pytest.mark.parametrize("has_links", [True, False])
def test_a_note_that_was_read_can_be_saved_with_other_weights(tmp_path, monkeypatch, has_links):
    rows = AppendOnly([1.5, 2.5])
    save(tmp_path / "step-1", {"a": [{"rows": rows}], "b": AppendOnly(["x"])})
    if not has_links:
        monkeypatch.setattr(os, "link", refuses)
    for name, source in (("edited", "step-1"), ("again", "edited")):
        note = json.loads(json.dumps(checkpoint.manifest(tmp_path / source)["note"]))
        checkpoint.save(tmp_path / name, {"a": np.ones(1)}, note={**note, "mine": {"rows": 3}})
    rows.append(3.5)
    save(tmp_path / "step-1", {"rows": rows})
    shutil.rmtree(tmp_path / "edited")
    assert rows_in(tmp_path / "again") == {"a": [{"rows": [1.5, 2.5]}], "b": ["x"]}
    assert checkpoint.manifest(tmp_path / "again")["note"]["mine"] == {"rows": 3}


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.clear(),
        lambda rows: rows.pop(),
        lambda rows: rows.sort(),
        lambda rows: rows.reverse(),
        lambda rows: rows.remove(1),
        lambda rows: rows.insert(0, 1),
        lambda rows: rows.__setitem__(0, 1),
        lambda rows: rows.__delitem__(0),
        lambda rows: rows.__imul__(2),
    ],
)
def test_the_list_only_grows(change):
    rows = AppendOnly([1, 2])
    rows.append(3)
    rows += [4]
    rows.extend([5])
    with pytest.raises(TypeError, match=r"only grows, .* write `list\(rows\)`"):
        change(rows)
    assert rows == [1, 2, 3, 4, 5]


def pickled(rows):
    return pickle.loads(pickle.dumps(rows))


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickled])
def test_a_copy_has_files_of_its_own(tmp_path, make):
    rows = AppendOnly([1])
    save(tmp_path / "step-1", {"rows": rows})
    other = make(rows)
    assert type(other) is AppendOnly
    rows.append(2)
    other.append(3)
    save(tmp_path / "step-2", {"rows": rows})
    save(tmp_path / "step-3", {"rows": other})
    assert rows_in(tmp_path / "step-2") == {"rows": [1, 2]}
    assert rows_in(tmp_path / "step-3") == {"rows": [1, 3]}


# In a run


class Adds(solstice.Experiment):
    total: jnp.ndarray

    def train_step(self, batch):
        return solstice.replace(self, total=self.total + batch.sum()), {"loss": batch.mean()}

    def eval_step(self, batch):
        return self, {}


DATA = [np.float32([i, i / 3]) for i in range(4)]


def fit(folder, num_epochs, history=None, **options):
    history = History(every=1) if history is None else history
    exp = solstice.Trainer([history, Checkpoint(folder, every=3, keep=99)]).fit(
        Adds(jnp.zeros(())), DATA, num_epochs=num_epochs, **options
    )
    return exp, history.rows


def test_a_run_goes_on_from_any_checkpoint_wherever_it_was_moved(tmp_path):
    expected, rows = fit(tmp_path / "whole", 3)
    fit(tmp_path / "a", 2)
    for path in sorted((tmp_path / "a").glob("step-*")):
        shutil.copytree(path, tmp_path / "elsewhere" / path.name)
        shutil.rmtree(path)
    for path in sorted((tmp_path / "elsewhere").iterdir()):
        folder = tmp_path / f"from-{path.name}"
        found, found_rows = fit(folder, 3, resume=path, strict_resume=True)
        assert checkpoint.diff(found, expected) == {}
        assert plain(found_rows) == plain(rows)
        again, again_rows = fit(folder, 3, resume="last")
        assert checkpoint.diff(again, expected) == {}
        assert plain(again_rows) == plain(rows)


def test_a_run_without_its_rows_is_named_and_its_weights_are_whole(tmp_path):
    expected, _ = fit(tmp_path / "a", 1)
    path = tmp_path / "a" / "step-4"
    (path / "rows-1.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"step-4 cannot be resumed") as error:
        fit(tmp_path / "a", 2, resume=path)
    line = str(error.value).split("`")[1]
    scope = {"solstice": solstice, "exp": Adds(jnp.ones(()))}
    exec(line, scope)
    assert checkpoint.diff(scope["exp"], expected) == {}
    shutil.copy(tmp_path / "a" / "step-3" / "rows-1.jsonl", path)  # which is the same file
    fit(tmp_path / "a", 2, resume=path)


class Grows(solstice.Callback):
    """A logger of somebody else's."""

    def __init__(self):
        self.rows = AppendOnly()

    def on_epoch_end(self, record):
        self.rows.append(Counted() if record.epoch else {"loss": np.float32(record.step)})

    def state_dict(self):
        return {"deep": [{"rows": self.rows}]}

    def load_state_dict(self, state):
        self.rows = AppendOnly(state["deep"][0]["rows"])


def test_a_callback_of_somebody_else_may_have_such_a_list(tmp_path):
    def go(epochs, **options):
        grows = Grows()
        trainer = solstice.Trainer([grows, Checkpoint(tmp_path / "a")])
        trainer.fit(Adds(jnp.zeros(())), DATA, num_epochs=epochs, **options)
        return grows.rows

    Counted.written = 0
    go(8)
    assert Counted.written == 7
    rows = go(9, resume="last")
    assert len(rows) == 9
    assert type(rows[0]["loss"]) is np.float32
    assert rows[7] == {"loss": 0.5}


# Death

DIES = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import numpy as np, safetensors.numpy
from test_rows import TREE, rows_in, save
from solstice import checkpoint
from solstice.checkpoint import AppendOnly

EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "shutil.rmtree")
dying = [0, 0]

def hook(event, arguments):
    if event in EVENTS and dying[1] and any(str(sys.argv[1]) in str(a) for a in arguments):
        dying[0] += 1
        if dying[0] == dying[1]:
            os._exit(9)

def child(folder, last):
    rows = AppendOnly([1])
    save(folder / "step-1", {"rows": rows})
    rows.append(2)
    save(folder / "step-2", {"rows": rows})
    rows.append(3)
    sys.addaudithook(hook)
    dying[1] = last
    save(folder / "step-2", {"rows": rows})
    os._exit(0)

def moment(last):
    folder = Path(sys.argv[1]) / str(last)
    process = os.fork()
    if process == 0:
        child(folder, last)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, 9)
    assert rows_in(folder / "step-1") == {"rows": [1]}
    checkpoint.load(folder / "step-2", like=TREE)
    checkpoint.sweep(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["step-1", "step-2"]
    found = rows_in(folder / "step-2")["rows"]
    assert found in ([1, 2], [1, 2, 3])
    rows = AppendOnly([*found, 4])
    save(folder / "step-3", {"rows": rows})
    assert rows_in(folder / "step-3") == {"rows": [*found, 4]}
    assert rows_in(folder / "step-1") == {"rows": [1]}
    return code, len(found)

found = [moment(1)]
while found[-1][0] == 9:
    found.append(moment(len(found) + 1))
print([rows for _, rows in found])
"""


@pytest.mark.slow
def test_dying_at_any_moment_leaves_the_old_rows_or_the_new(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DIES, str(tmp_path / "runs"), str(Path(__file__).parent)],
        capture_output=True, text=True, check=False, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts == sorted(counts)
    assert {2, 3} == set(counts)
    assert len(counts) > 10
