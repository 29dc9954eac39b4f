"""`fit(resume="runs/a", at_step=137, branch="runs/b")`: a run that starts within another one."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import DataError, checkpoint
from solstice.callbacks import Checkpoint, EarlyStopping, History
from solstice.checkpoint import CheckpointError
from solstice.data import batches
from solstice.loggers import JSONLines

pytest.importorskip("safetensors")

STEPS = 5
"""In an epoch; the last batch has 3 rows."""

X = np.random.default_rng(0).normal(size=(23, 3)).astype(np.float32)
VAL = [X[:4], X[4:6]]


class Noisy(solstice.Experiment):
    """A step that shows in its state each batch, their order, and the key."""

    value: jax.Array
    rate: jax.Array
    total: jax.Array
    key: jax.Array

    def train_step(self, batch: Any) -> Any:
        key, now = jax.random.split(self.key)
        noise = jax.random.normal(now, self.value.shape)
        value = self.value + self.rate * (jnp.mean(batch, axis=0) + 0.1 * noise - self.value)
        new = solstice.replace(self, value=value, key=key, total=self.total + jnp.sum(batch))
        return new, {"loss": jnp.sum(value**2)}

    def eval_step(self, batch: Any) -> Any:
        return self, {"loss": jnp.mean((batch - self.value[None]) ** 2)}


class Slower(Noisy):
    """Another step of the same state."""

    def train_step(self, batch: Any) -> Any:
        new, outputs = super().train_step(batch)
        return solstice.replace(new, value=(self.value + new.value) / 2), outputs


def make(kind: type[Noisy] = Noisy, rate: float = 0.3, total: float = 0.0) -> Any:
    return kind(jnp.zeros(3), jnp.asarray(rate), jnp.asarray(total), jax.random.key(0))


class BoomError(Exception):
    pass


class Dies(solstice.Callback):
    """Raises after the callbacks that save, at a step."""

    phase = solstice.Phase.SAVE

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, record: solstice.Record) -> None:
        if record.mode == "train" and record.step == self.step:
            raise BoomError


def fit(
    folder: Path,
    experiment: Any = None,
    data: Any = None,
    *,
    patience: int = 9,
    dies: int | None = None,
    trainer: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Any, list[Any], Any]:
    """Trains for 4 epochs; gives the Experiment, the rows, and a state of a callback."""
    history, stopping = History(every=2), EarlyStopping("val/loss", patience=patience)
    saver = Checkpoint(folder, every=6, every_epochs=None, keep=9)
    callbacks = [history, stopping, JSONLines(folder / "log.jsonl"), saver]
    callbacks += [] if dies is None else [Dies(dies)]
    exp = solstice.Trainer(callbacks, **(trainer or {})).fit(
        make() if experiment is None else experiment,
        batches(X, 5, shuffle=True) if data is None else data,
        VAL,
        **{"num_epochs": 4, **options},
    )
    return exp, history.rows, stopping.state_dict()


@pytest.fixture(scope="module")
def parent(tmp_path_factory: Any) -> tuple[Path, Any]:
    """A run of 20 steps with checkpoints at 6, 12 and 18, and what it leaves behind."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    return folder, fit(folder)


def files_of(folder: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("step", [0, 3, 6, 10, 12, 13, 20])
def test_a_branch_without_a_change_is_its_parent(tmp_path: Path, parent: Any, step: int):
    """From the start, at a checkpoint, between two, at an epoch's end and at that of the run."""
    folder, (last, rows, state) = parent
    before = files_of(folder)
    found = fit(tmp_path / "b", resume=folder, at_step=step, branch=tmp_path / "b")
    assert checkpoint.diff(found[0], last) == {}
    assert found[1] == rows
    assert found[2] == state
    info = solstice.runs.read(tmp_path / "b")
    assert info.parent == {"folder": str(folder), "step": step, "changes": []}
    assert files_of(folder) == before


def test_without_a_step_it_starts_at_the_newest_checkpoint(tmp_path: Path, parent: Any):
    folder, (last, _, _) = parent
    found = fit(tmp_path / "b", resume=folder, branch=tmp_path / "b")
    assert checkpoint.diff(found[0], last) == {}
    assert solstice.runs.read(tmp_path / "b").parent == {
        "folder": str(folder),
        "step": 18,
        "changes": [],
    }


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "rate": ({"experiment": make(rate=0.1)}, "`.rate` was "),
    "step": ({"experiment": make(Slower)}, "train_step computes something else"),
    "data": ({"data": batches(X + 1, 5, shuffle=True)}, "the arrays of train_ds are not"),
    "batch": ({"data": batches(X, 3, shuffle=True)}, "an epoch had 5 batches, and has 8"),
    "hyperparameters": ({"trainer": {"hyperparameters": {"rate": 1}}}, "rate was not given"),
    "order": ({"data": batches(X, 5, shuffle=True, seed=1)}, "had seed=0, and has seed=1"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_recorded_and_takes_effect(tmp_path: Path, parent: Any, name: str):
    """It is not a warning, and is not one when the branch is resumed."""
    folder, (last, rows, _) = parent
    given, words = CHANGES[name]
    at = {"resume": folder, "at_step": 12, "branch": tmp_path / "b"}
    whole = fit(tmp_path / "b", **given, **at)
    note = solstice.runs.read(tmp_path / "b").parent
    assert note is not None
    assert note["step"] == 12
    assert any(words in change for change in note["changes"])
    assert (checkpoint.diff(whole[0], last) == {}) == (name == "hyperparameters")
    assert [row for row in whole[1] if row["step"] <= 12] == [
        row for row in rows if row["step"] <= 12
    ]
    # Killed after its first checkpoint, the same line continues the branch.
    at["branch"] = tmp_path / "c"
    with pytest.raises(BoomError):
        fit(tmp_path / "c", dies=19, **given, **at)
    at["resume"] = folder.parent / "other" / ".." / folder.name
    (folder.parent / "other").mkdir(exist_ok=True)
    again = fit(tmp_path / "c", strict_resume=True, **given, **at)
    assert checkpoint.diff(again[0], whole[0]) == {}
    assert again[1:] == whole[1:]
    assert solstice.runs.read(tmp_path / "c").parent == note


def test_the_rate_given_counts_unless_the_run_has_changed_it(tmp_path: Path, parent: Any):
    folder, _ = parent
    given = make(rate=0.1, total=5.0)
    at = {"resume": folder, "at_step": 12, "branch": tmp_path / "b"}
    last, _, _ = fit(tmp_path / "b", given, max_steps=12, **at)
    was = solstice.at(folder, step=12, experiment=make(), train_ds=batches(X, 5, shuffle=True))
    assert checkpoint.diff(last, was).keys() == {".rate"}
    assert float(last.rate) == pytest.approx(0.1)
    note = solstice.runs.read(tmp_path / "b").parent
    assert note is not None
    assert re.search("`.rate` was 0.3.*, and is 0.1", note["changes"][0])
    assert "the run continues with the value in the checkpoint" in note["changes"][1]


def test_a_stopped_parent_goes_on_in_a_branch(tmp_path: Path, parent: Any):
    _, (last, _, _) = parent

    class Stops(solstice.Callback):
        def on_step_end(self, record: solstice.Record) -> None:
            if record.mode == "train" and record.step == 8:
                raise solstice.Stop("enough")

    data = batches(X, 5, shuffle=True)
    saver = Checkpoint(tmp_path / "a", every=8, every_epochs=None)
    solstice.Trainer([Stops(), saver]).fit(make(), data, VAL, num_epochs=4)
    assert checkpoint.manifest(tmp_path / "a/step-8")["note"]["run"]["stop"] == "enough"
    found = solstice.Trainer().fit(
        make(), data, VAL, num_epochs=4, resume=tmp_path / "a", branch=tmp_path / "b"
    )
    assert checkpoint.diff(found, last) == {}
    # Also without a callback that writes there.
    assert solstice.runs.read(tmp_path / "b").parent is not None


def test_a_strict_branch_has_no_change(tmp_path: Path, parent: Any):
    folder, (last, _, _) = parent
    at = {"resume": folder, "branch": tmp_path / "b", "strict_resume": True}
    for step in (12, 13):
        with pytest.raises(CheckpointError, match=r"`\.rate` was 0\.3"):
            fit(tmp_path / "b", make(rate=0.1), at_step=step, **at)
    found = fit(tmp_path / "b", at_step=13, **at)
    assert checkpoint.diff(found[0], last) == {}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"experiment": make(Slower)}, "train_step computes something else"),
        ({"data": batches(X + 1, 5, shuffle=True)}, "the arrays of train_ds are not"),
    ],
)
def test_a_replay_needs_the_step_and_the_data_of_the_parent(
    tmp_path: Path, parent: Any, given: dict[str, Any], reason: str
):
    """The error has the line to write, and this line works."""
    folder, _ = parent
    at = {"resume": folder, "branch": tmp_path / "b"}
    with pytest.raises(CheckpointError, match=reason) as caught:
        fit(tmp_path / "b", at_step=13, **at, **given)
    line = f"solstice.at({str(folder)!r}, step=13, experiment=..., train_ds=..., save=True)"
    assert f"`{line}`; or branch at a checkpoint: `at_step=12`" in str(caught.value)
    assert not (tmp_path / "b").exists()
    with pytest.raises(CheckpointError, match=reason) as caught:
        fit(tmp_path / "b", at_step=3, **at, **given)
    assert str(caught.value).endswith("save=True)`")


def test_a_callback_that_stops_the_replay_is_named(tmp_path: Path, parent: Any):
    class Stops(solstice.Callback):
        def on_step_end(self, record: solstice.Record) -> None:
            if record.mode == "train" and record.step == 14:
                raise solstice.Stop("enough")

    folder, _ = parent
    data = batches(X, 5, shuffle=True)
    at: dict[str, Any] = {"resume": folder, "at_step": 15, "branch": tmp_path / "b"}
    with pytest.raises(CheckpointError, match=r"ends after step 14 \(enough\).*save=True"):
        solstice.Trainer([Stops()]).fit(make(), data, VAL, **at)


def test_a_dry_run_writes_nothing(tmp_path: Path, parent: Any):
    folder, _ = parent
    saver = Checkpoint(tmp_path / "b")
    trainer = solstice.Trainer([saver], fast_dev_run=True)
    trainer.fit(make(), batches(X, 5), VAL, resume=folder, branch=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_the_rate_may_change_between_two_checkpoints(tmp_path: Path, parent: Any):
    folder, _ = parent
    at = {"resume": folder, "at_step": 13, "branch": tmp_path / "b"}
    found, _, _ = fit(tmp_path / "b", make(rate=0.1), max_steps=13, **at)
    was = solstice.at(folder, step=13, experiment=make(), train_ds=batches(X, 5, shuffle=True))
    assert checkpoint.diff(found, was).keys() == {".rate"}


def test_data_that_differ_when_they_are_read_again_are_refused(tmp_path: Path):
    """Their second reading is for the branch, after the replay."""

    def forgets() -> Any:
        """A function whose epochs depend on how many were read."""
        rng = np.random.default_rng(3)
        return lambda: (X[rng.permutation(23)[:5]] for _ in range(5))

    folder = tmp_path / "a"
    fit(folder, data=forgets())
    at = {"resume": folder, "at_step": 13, "branch": tmp_path / "b"}
    with pytest.raises(CheckpointError, match=r"the batch after step 13 of .* save=True"):
        fit(tmp_path / "b", data=forgets(), **at)
    with pytest.raises(DataError, match=r"a one-shot iterator: .* when it was read again"):
        fit(tmp_path / "b", data=(batch for batch in [X[:5]] * 20), max_steps=20, **at)


def test_a_folder_of_another_run_is_refused(tmp_path: Path, parent: Any):
    folder, _ = parent
    fit(tmp_path / "b")
    at = {"resume": folder, "branch": tmp_path / "b"}
    with pytest.raises(CheckpointError, match="a run that is not a branch, up to step-18"):
        fit(tmp_path / "b", at_step=12, **at)
    fit(tmp_path / "c", at_step=6, resume=folder, branch=tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"a branch of .* at step 6, up to step-18"):
        fit(tmp_path / "c", at_step=12, resume=folder, branch=tmp_path / "c")


@pytest.mark.parametrize(
    ("callback", "reason"),
    [
        (lambda a, b: Checkpoint(a), "saves into the run that this branch leaves"),
        (lambda a, b: Checkpoint(a / "best"), "saves into the run that this branch leaves"),
        (lambda a, b: JSONLines(a / "x.jsonl"), "writes into the run that this branch leaves"),
        (lambda a, b: Checkpoint(b.parent / "c"), "saves outside of branch="),
    ],
)
def test_a_branch_leaves_the_folder_of_its_parent_alone(
    tmp_path: Path, parent: Any, callback: Any, reason: str
):
    folder, _ = parent
    trainer = solstice.Trainer([callback(folder, tmp_path / "b")])
    with pytest.raises(ValueError, match=reason) as caught:
        trainer.fit(make(), batches(X, 5), resume=folder, branch=tmp_path / "b")
    assert str(tmp_path / "b") in str(caught.value)


def test_a_branch_may_lie_within_its_parent_and_have_two_checkpoints(tmp_path: Path):
    fit(tmp_path / "a", max_steps=6)
    place = tmp_path / "a" / "b"
    at: dict[str, Any] = {"resume": tmp_path / "a", "at_step": 6, "branch": place}
    data = batches(X, 5, shuffle=True)
    for steps in (12, 18):
        savers = [Checkpoint(place / name, every=6, every_epochs=None) for name in "xy"]
        solstice.Trainer(savers).fit(make(), data, max_steps=steps, **at)
    assert sorted(p.name for p in (place / "x").glob("step-*")) == ["step-12", "step-18"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"at_step": 12}, "write `fit(..., resume='runs/a', at_step=12, branch='runs/b')`"),
        ({"branch": "b"}, "write `fit(..., resume='runs/a', branch='b')`"),
        ({"branch": "b", "resume": "last"}, "resume is 'last'"),
        ({"branch": "a", "resume": "a/../a"}, "is the folder of the parent"),
        ({"branch": "b", "resume": "a", "at_step": -1}, "at_step must be 0 or more"),
        ({"branch": "b", "resume": "a", "at_step": 1.5}, "at_step must be"),
        ({"branch": "b", "resume": "a", "at_step": True}, "at_step must be"),
        ({"branch": 5, "resume": "a"}, "branch must be a path"),
        ({"branch": "b", "resume": 5}, "resume must be a path"),
        ({"branch": "", "resume": "a"}, "branch"),
    ],
)
def test_the_arguments_go_together(options: dict[str, Any], reason: str):
    with pytest.raises((TypeError, ValueError), match=re.escape(reason)):
        solstice.Trainer().fit(make(), batches(X, 5), **options)


def test_a_branch_of_a_branch_and_its_steps(tmp_path: Path, parent: Any):
    folder, (last, rows, _) = parent
    fit(tmp_path / "b", resume=folder, at_step=9, branch=tmp_path / "b")
    found = fit(tmp_path / "c", resume=tmp_path / "b", at_step=14, branch=tmp_path / "c")
    assert checkpoint.diff(found[0], last) == {}
    assert found[1] == rows
    given: dict[str, Any] = {"experiment": make(), "train_ds": batches(X, 5, shuffle=True)}
    one, other = (solstice.at(place, step=16, **given) for place in (folder, tmp_path / "c"))
    assert checkpoint.diff(one, other) == {}
    with pytest.raises(CheckpointError, match="starts at step 9 of") as caught:
        solstice.at(tmp_path / "b", step=8, **given)
    assert f"`solstice.at({str(folder)!r}, step=8, ...)`" in str(caught.value)


@pytest.mark.parametrize("step", [10, 13])
def test_the_folder_of_a_branch_has_its_start(tmp_path: Path, parent: Any, step: int):
    """At the end of an epoch and within one; it resumes exactly, and is not the newest."""
    folder, (last, rows, state) = parent
    fit(tmp_path / "b", resume=folder, at_step=step, branch=tmp_path / "b")
    assert Checkpoint(tmp_path / "b").last == tmp_path / "b/step-18"
    again = fit(tmp_path / "c", resume=tmp_path / f"b/step-{step}")
    assert checkpoint.diff(again[0], last) == {}
    assert again[1:] == (rows, state)
