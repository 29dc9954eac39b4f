"""callbacks.Trace and solstice.diff: what a run did, and where another one parts from it."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice.__main__ import main
from solstice.callbacks import Checkpoint, Trace
from solstice.checkpoint import CheckpointError

pytestmark = pytest.mark.bits

fault: dict[str, Any] = {"step": 0, "flip": 0}
"""A bit to flip in `weight` after a step: the step asks the host, and stays the same program."""


def flip(count: Any) -> Any:
    return np.uint32(fault["flip"] if int(count) == fault["step"] else 0)


class Net(solstice.Experiment):
    weight: Any
    key: Any
    count: Any

    def __init__(self, seed: int = 0) -> None:
        self.weight = jnp.ones((3, 2))
        self.key = jax.random.key(seed)
        self.count = jnp.zeros((), jnp.int32)

    def train_step(self, batch: Any) -> Any:
        x, y = batch
        key, now = jax.random.split(self.key)
        loss, grad = jax.value_and_grad(lambda w: jnp.mean((x @ w - y) ** 2))(self.weight)
        weight = self.weight - 0.1 * grad + 0.01 * jax.random.normal(now, (3, 2))
        words = jax.lax.bitcast_convert_type(weight, jnp.uint32)
        shape = jax.ShapeDtypeStruct((), jnp.uint32)
        words = words.at[1, 0].set(words[1, 0] ^ jax.pure_callback(flip, shape, self.count + 1))
        weight = jax.lax.bitcast_convert_type(words, jnp.float32)
        new = solstice.replace(self, weight=weight, key=key, count=self.count + 1)
        return new, {"loss": loss}

    def eval_step(self, batch: Any) -> Any:
        return self, {}


def arrays() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(28, 3)), draw.normal(size=(28, 2))
    return x.astype(np.float32), y.astype(np.float32)


def data() -> list[Any]:
    x, y = arrays()
    return [(x[at : at + 4], y[at : at + 4]) for at in range(0, 28, 4)]


def train(folder: Path, *callbacks: Any, net: Any = None, ds: Any = None, **options: Any) -> Any:
    every = options.pop("every", 1)
    trainer = solstice.Trainer([Trace(folder, every=every), *callbacks])
    given = {"num_epochs": 3} | options
    return trainer.fit(net or Net(), data() if ds is None else ds, **given)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "trace").iterdir()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "base"
    train(folder)
    return folder


class Fails(solstice.Callback):
    def __init__(self, step: int) -> None:
        self.every = step

    def on_step_end(self, record: solstice.Record) -> None:
        raise RuntimeError("killed")


@pytest.mark.parametrize(("step", "every"), [(5, 4), (9, 4), (14, 7), (20, 3)])
def test_a_resumed_run_has_the_trace_of_one_that_was_not_interrupted(
    base: Path, tmp_path: Path, step: int, every: int
):
    saves = Checkpoint(tmp_path, every=every, every_epochs=None)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, saves, Fails(step))
    assert len(files(tmp_path)["from-0.rows"]) == step * 3 * 4
    for name in ("from-0.rows", "from-0.state"):  # a process may die within a write
        with (tmp_path / "trace" / name).open("ab") as file:
            file.write(b"12345")
    train(tmp_path, saves, resume="last")
    assert files(tmp_path) == files(base)
    found = solstice.diff(base, tmp_path)
    assert (found.is_equal, found.through, found.before) == (True, 21, [])


def test_rows_are_written_before_a_checkpoint_of_their_step(tmp_path: Path):
    class Dies(solstice.Callback):
        phase = solstice.Phase.SAVE

        def on_step_end(self, record: solstice.Record) -> None:
            if record.step == 10:  # after the checkpoint, and before the end of the call
                saves.find("last")
                sizes.append(len(files(tmp_path)["from-0.rows"]))

    sizes: list[int] = []
    saves = Checkpoint(tmp_path, every=10)
    train(tmp_path, saves, Dies())
    assert sizes == [10 * 3 * 4]


def test_a_bit_that_flips_is_named_at_its_step(base: Path, tmp_path: Path):
    fault.update(step=11, flip=1 << 31)
    try:
        train(tmp_path / "flipped")
        train(tmp_path / "rarely", every=4)
    finally:
        fault.update(step=0)
    found = solstice.diff(base, tmp_path / "flipped")
    assert (found.kind, found.step, found.names) == ("state", 11, ("state/weight",))
    assert (found.epoch, found.batch, found.before) == (1, 3, [])
    assert str(found).endswith(
        "equal through step 10\nat step 11 (epoch 1, batch 3, both from 0), the same state and "
        "batch give another state, with the same outputs: state/weight"
    )
    assert not found.is_equal
    found = solstice.diff(base, tmp_path / "rarely")
    assert (found.kind, found.step, found.state_before) == ("outputs", 12, 8)
    assert "The states were compared before, and equal, at step 8" in str(found)


def test_another_example_or_order_is_named_at_its_batch(base: Path, tmp_path: Path):
    changed = data()
    changed[4][1][2, 0] += 1e-3
    train(tmp_path / "example", ds=changed)
    found = solstice.diff(base, tmp_path / "example")
    assert (found.kind, found.step, found.names) == ("data", 5, ("batch/1",))
    assert any("training data checksum" in line for line in found.before or [])
    swapped = data()
    swapped[2], swapped[6] = swapped[6], swapped[2]
    train(tmp_path / "order", ds=swapped)
    found = solstice.diff(base, tmp_path / "order")
    assert (found.kind, found.step, found.batch) == ("data", 3, 2)


def test_another_key_is_named_at_the_start(base: Path, tmp_path: Path):
    train(tmp_path, net=Net(seed=1))
    found = solstice.diff(base, tmp_path)
    assert (found.kind, found.step, found.names) == ("start", 0, ("state/key",))
    assert str(found).endswith("random keys differ: state/key")


def test_versions_and_programs_are_named_before(base: Path, tmp_path: Path):
    class Other(Net):
        def train_step(self, batch: Any) -> Any:
            new, outputs = super().train_step(batch)
            return solstice.replace(new, weight=new.weight * 0.5), outputs

    train(tmp_path, net=Other())
    found = solstice.diff(base, tmp_path)
    assert (found.kind, found.step) == ("state", 1)
    assert found.before is not None
    assert found.before[0].startswith("program: train_step computes something else")
    about = json.loads((tmp_path / "run.json").read_text())
    about["versions"]["numpy"] = "9.9"
    (tmp_path / "run.json").write_text(json.dumps(about))
    before = solstice.diff(base, tmp_path).before or []
    assert before[-1] == f"version of numpy: {np.__version__!r} and '9.9'"


def test_runs_of_other_lengths_or_without_a_trace(base: Path, tmp_path: Path):
    train(tmp_path / "short", num_epochs=None, max_steps=9)
    found = solstice.diff(base, tmp_path / "short")
    assert found.is_equal
    assert str(found).endswith(f"equal through step 9\n{tmp_path / 'short'} ends there")
    solstice.Trainer([Checkpoint(tmp_path / "bare")]).fit(Net(), data(), num_epochs=1)
    found = solstice.diff(base, tmp_path / "bare")
    assert (found.is_equal, found.through) == (False, None)
    assert "add `Trace(" in str(found)
    with pytest.raises(CheckpointError, match=r"neither run.json nor a trace"):
        solstice.diff(base, tmp_path)


def test_the_command_prints_the_comparison(base: Path, tmp_path: Path, capsys: Any):
    train(tmp_path / "equal")
    assert main(["diff", str(base), str(tmp_path / "equal")]) == 0
    assert capsys.readouterr().out.endswith("equal through step 21\n")
    train(tmp_path / "other", net=Net(seed=1))
    assert main(["diff", str(base), str(tmp_path / "other")]) == 1
    assert main(["diff", str(base), str(tmp_path / "none")]) == 2
    assert "neither run.json nor a trace" in capsys.readouterr().err


def test_a_trace_of_another_run_is_kept_and_not_continued(tmp_path: Path):
    saves = Checkpoint(tmp_path / "saved", every=7)
    train(tmp_path / "a", saves)
    train(tmp_path / "b", net=Net(seed=1))
    train(tmp_path / "b")
    assert (tmp_path / "b" / "trace-1").is_dir()
    assert solstice.diff(tmp_path / "a", tmp_path / "b").is_equal
    train(tmp_path / "c", net=Net(seed=1))
    saved = tmp_path / "saved" / "step-14"
    with pytest.raises(CheckpointError, match="not the trace of the run that continues"):
        train(tmp_path / "c", resume=saved)
    with pytest.warns(UserWarning, match="steps before it are missing"):
        train(tmp_path / "d", saves, resume=saved)
    found = solstice.diff(tmp_path / "a", tmp_path / "d")
    assert (found.is_equal, found.through) == (True, 21)


def test_damaged_files_are_named(base: Path, tmp_path: Path):
    train(tmp_path)
    head = tmp_path / "trace" / "from-0.json"
    head.write_text(head.read_text().replace('"first": 0', '"first": "no"'))
    with pytest.raises(CheckpointError, match=r"from-0.json cannot be read: .*first"):
        solstice.diff(base, tmp_path)


def test_the_arguments_are_checked(tmp_path: Path):
    with pytest.raises(ValueError, match="every"):
        Trace(tmp_path, every=0)
    with pytest.raises(ValueError, match="local files"):
        Trace("gs://bucket/run")
    assert Trace(tmp_path).run_folder == tmp_path
    assert not os.listdir(tmp_path)


class Grows(solstice.Experiment):
    weight: Any

    def train_step(self, batch: Any) -> Any:
        return solstice.replace(self, weight=self.weight + batch.sum()), {"loss": batch.mean()}

    def eval_step(self, batch: Any) -> Any:
        return self, {}

    def epoch_step(self, metrics: Any) -> Any:
        return solstice.replace(self, weight=jnp.ones(len(self.weight) + 1))


def test_arrays_may_change_their_shapes_between_epochs(tmp_path: Path):
    ones = [np.ones(4, np.float32)] * 3
    for name in ("a", "b"):
        train(tmp_path / name, net=Grows(jnp.ones(2)), ds=ones, num_epochs=2, every=2)
    assert {"from-0.rows", "from-3.rows"} <= {*files(tmp_path / "a")}
    found = solstice.diff(tmp_path / "a", tmp_path / "b")
    assert (found.is_equal, found.through) == (True, 6)
    train(tmp_path / "c", net=Grows(jnp.zeros(2)), ds=ones, num_epochs=2, every=2)
    assert solstice.diff(tmp_path / "a", tmp_path / "c").kind == "start"
