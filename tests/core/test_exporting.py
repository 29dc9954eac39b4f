"""`solstice.export` and `exported`: a run without its code."""

import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ready_made import ADAM, SGD, layer

import solstice
from solstice import DataError, ExperimentError, ExportError
from solstice._exporting._archive import Spec, pack_arrays, unpack_arrays

pytest.importorskip("flatbuffers")

PAGE = Path(__file__).parents[2] / "docs/howto/export.md"
RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 4)).astype(np.float32)
Y = RNG.integers(0, 3, 48).astype(np.int32)
BATCHES = [{"x": X[i : i + 8], "y": Y[i : i + 8], "name": "text"} for i in range(0, 48, 8)]


class Everything(solstice.Experiment):
    """Typed keys, a Python number, bfloat16, a state of the model, text, and predictions."""

    weights: Any
    half: Any
    mean: Any
    key: Any
    rate: float
    name: str = "everything"

    def logits(self, x):
        return (x - self.mean[None]) @ self.weights + self.half[None].astype(jnp.float32)

    def train_step(self, batch):
        key, noise = jax.random.split(self.key)
        x = batch["x"] + 0.1 * jax.random.normal(noise, batch["x"].shape)

        def loss_of(weights):
            new = solstice.replace(self, weights=weights)
            return -jax.nn.log_softmax(new.logits(x))[jnp.arange(len(x)), batch["y"]].mean()

        loss, slope = jax.value_and_grad(loss_of)(self.weights)
        new = solstice.replace(
            self,
            weights=self.weights - self.rate * slope,
            half=self.half * 0.75,
            mean=0.9 * self.mean + 0.1 * x.mean(0),
            key=key,
            rate=self.rate * 0.99,
        )
        return new, {"loss": loss, "rate": self.rate}

    def eval_step(self, batch):
        logits = self.logits(batch["x"])
        return self, solstice.ClassificationMetrics(logits.argmax(1), batch["y"], 0.5, 3)

    def predict_step(self, batch):
        return self.logits(batch["x"])


def make():
    half = jnp.ones(3, jnp.bfloat16)
    return Everything(jnp.zeros((4, 3)), half, jnp.zeros(4), jax.random.key(3), 0.1)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    place = tmp_path_factory.mktemp("exported") / "run.zip"
    assert solstice.export(make(), BATCHES[0], place, platforms=["cpu", "tpu"]) == place
    return place


@pytest.fixture(scope="module")
def run(path):
    return solstice.exported(path)


@pytest.fixture(scope="module")
def trained():
    trainer = solstice.Trainer()
    return trainer.fit(make(), BATCHES, num_epochs=1), trainer.history.rows[-1]


def train(run):
    state, total = run.init(), None
    for batch in BATCHES:
        state, metrics = run.train_step(state, batch)
        total = metrics if total is None else total.merge(metrics)
    return state, total


@pytest.mark.bits
def test_a_step_gives_the_bits_and_the_metrics_of_a_trainer(run, trained):
    exp, row = trained
    state, total = train(run)
    back = run.restore(state, make())
    assert type(back.rate) is not float  # a Python number that steps change is an array
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(exp), strict=True):
        if isinstance(ours, jax.Array) and jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    computed = total.compute()
    assert computed == pytest.approx({name: row[name] for name in computed}, rel=1e-6)
    assert {*computed} == {"loss", "rate"}


def test_evaluation_and_prediction_take_any_number_of_examples(run, trained):
    state, _ = train(run)
    total = None
    for count in (5, 8, 1):
        batch = {"x": X[:count], "y": Y[:count]}
        same, metrics = run.eval_step(state, batch)
        total = metrics if total is None else total.merge(metrics)
        assert {*same} == {*state}
        [expected] = solstice.Trainer().predict(trained[0], [batch])
        np.testing.assert_allclose(run.predict_step(state, X[:count]), expected, rtol=1e-6)
        np.testing.assert_array_equal(
            run.predict_step(state, batch), run.predict_step(state, X[:count])
        )
    there = np.concatenate([X[:5], X[:8], X[:1]]), np.concatenate([Y[:5], Y[:8], Y[:1]])
    batch = dict(zip("xy", there, strict=True))
    expected = solstice.Trainer().test(trained[0], [batch])
    assert total.compute() == pytest.approx(expected, rel=1e-6, nan_ok=True)


ALONE = """
import sys

class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("solstice", "equinox", "flax", "optax", "haiku", "jaxtyping"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refuse())
"""
"""No library of ours; `tests/studies/export.py` has an environment without any other."""


def test_jax_alone_trains_by_the_lines_of_the_page(path, run):
    block = next(b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
                 if "import zipfile" in b)  # fmt: skip
    lines = block.split("train_step, compute =")[0].replace("run.zip", str(path))
    data = path.with_name("data.npz")
    np.savez(data, x=[b["x"] for b in BATCHES], y=[b["y"] for b in BATCHES])
    more = f"""
data = np.load({str(data)!r})
step, merge, compute = map(load, ("train_step", "train_merge", "train_compute"))
total = None
for x, y in zip(data["x"], data["y"]):
    state, metrics = step(state, {{"x": x, "y": y}})
    total = metrics if total is None else merge(total, metrics)
found = {{name: np.asarray(array).tobytes().hex() for name, array in state.items()}}
print(json.dumps([found, float(compute(total)["loss"])]))
"""
    command = [sys.executable, "-c", ALONE + lines + more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, loss = json.loads(done.stdout)
    state, total = train(run)
    assert found == {name: np.asarray(array).tobytes().hex() for name, array in state.items()}
    assert loss == pytest.approx(total.compute()["loss"])


def content(run):
    manifest = run.manifest
    return manifest, {name: np.asarray(array).tobytes() for name, array in run.init().items()}


def test_each_damaged_byte_is_named_or_changes_nothing(path, run, tmp_path):
    whole, damaged = path.read_bytes(), tmp_path / "damaged.zip"
    cuts = [whole[:n] for n in (0, 10, len(whole) // 2, len(whole) - 70, len(whole) - 1)]
    places = np.unique(np.linspace(0, len(whole) - 1, 60).astype(int))
    flips = [whole[:i] + bytes([whole[i] ^ 0x10]) + whole[i + 1 :] for i in places]
    caught = 0
    for text in [*cuts, *flips]:
        damaged.write_bytes(text)
        try:
            found = content(solstice.exported(damaged))
        except ExportError:
            caught += 1
        else:
            assert found == content(run)
    assert caught > len(flips) // 2


def edited(path, to, changes, comment=None):
    """A copy of the zip with other members; its own checks of each member hold."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        for name in {*old.namelist()} | {*changes}:
            text = changes.get(name, old.read(name) if name in old.namelist() else b"")
            if text is not None:
                new.writestr(name, text)
        new.comment = old.comment if comment is None else comment
    return to


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state.npz": b"other"}, "state.npz does not have the checksum"),
        ({"cpu/train_step.stablehlo": b"other"}, "cpu/train_step.stablehlo does not have"),
        ({"tpu/eval_step.stablehlo": None}, "tpu/eval_step.stablehlo is missing"),
        ({"more.txt": b"more"}, "more.txt does not have the checksum"),
        ({"manifest.json": b"{}"}, "manifest.json has another checksum"),
        ({"manifest.json": None}, "is not an exported run"),
    ],
)
def test_an_edited_zip_is_named(path, tmp_path, changes, words):
    with pytest.raises(ExportError, match=re.escape(words)):
        solstice.exported(edited(path, tmp_path / "edited.zip", changes))


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


def sealed(path, to, change, **members):
    """A copy with another manifest and other members, and all checksums made again."""
    from hashlib import sha256

    manifest = json.loads(zipfile.ZipFile(path).read("manifest.json"))
    change(manifest)
    manifest["members"] |= {name: sha256(text).hexdigest() for name, text in members.items()}
    text = json.dumps(manifest).encode()
    seal = f"solstice-export sha256 {sha256(text).hexdigest()}".encode()
    return edited(path, to, {"manifest.json": text, **members}, seal)


def pickled():
    file = io.BytesIO()
    np.savez(file, *[np.array([Bomb()], object)] * 5)
    return file.getvalue()


@pytest.mark.parametrize(
    ("change", "members", "words"),
    [
        (lambda m: None, {"state.npz": pickled()}, "state.npz cannot be read"),
        (lambda m: None, {"cpu/train_step.stablehlo": b"x" * 90}, "cannot read train_step"),
        (lambda m: m.update(version=9), {}, "is of solstice-export 9"),
        (lambda m: m.pop("state"), {}, "has no 'state'"),
        (lambda m: m["state"]["mean"].update(shape=[5]), {}, "`mean` is not float32[5]"),
        (lambda m: m["state"]["mean"].update(dtype="what"), {}, "state.npz cannot be read"),
        (lambda m: m["state"].pop("rate"), {}, "state.npz has 5 arrays, and not 4"),
    ],
)
def test_a_file_made_by_somebody_else_is_named(path, tmp_path, change, members, words):
    with pytest.raises(ExportError, match=re.escape(words)):
        solstice.exported(sealed(path, tmp_path / "other.zip", change, **members))


@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 3)])
def test_arrays_of_each_dtype_of_jax_come_back(shape):
    names = ["bool", "int8", "uint64", "float16", "float64", "complex64", "bfloat16"]
    names += ["float8_e5m2", "float8_e4m3fn", "int4", "uint4"]
    arrays = {name: np.ones(shape).astype(name) for name in names}
    specs = {name: Spec(name, [*shape]) for name in names}
    found = unpack_arrays(Path("x"), pack_arrays([*arrays.values()]), specs)
    for name, array in found.items():
        assert (array.dtype.name, array.tobytes()) == (name, arrays[name].tobytes())


def test_a_platform_that_is_not_there_and_an_expired_file_are_named(path, tmp_path, monkeypatch):
    other = sealed(path, tmp_path / "other.zip", lambda m: m.update(platforms=["tpu"]))
    with pytest.raises(ExportError, match=r"exported for tpu, and JAX runs on cpu here"):
        solstice.exported(other)

    def refuse(_):
        raise ValueError("older than the 6-month window")

    monkeypatch.setattr(jax.export, "deserialize", refuse)
    with pytest.raises(ExportError, match=rf"(?s)6-month window.*install jax=={jax.__version__}"):
        solstice.exported(path)


def test_what_a_file_is_not(tmp_path):
    with pytest.raises(ExportError, match="there is no file"):
        solstice.exported(tmp_path / "no.zip")
    with pytest.raises(ExportError, match="not a file: it is a folder"):
        solstice.exported(tmp_path)
    with zipfile.ZipFile(tmp_path / "any.zip", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(ExportError, match="is not an exported run"):
        solstice.exported(tmp_path / "any.zip")


def test_another_file_is_not_replaced_and_an_exported_run_is(tmp_path):
    place = tmp_path / "a.zip"
    place.write_text("precious")
    with pytest.raises(ExportError, match="is there and is not an exported run"):
        solstice.export_predict(make(), BATCHES[0], place, platforms=["cpu"])
    assert place.read_text() == "precious"
    place.unlink()
    for _ in range(2):
        solstice.export_predict(make(), BATCHES[0], place, platforms=["cpu"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_a_prediction_has_the_arrays_that_it_needs(tmp_path, trained):
    place = tmp_path / "model.zip"
    solstice.export_predict(trained[0], BATCHES[0], place, platforms="cpu")
    model = solstice.exported(place)
    assert {*model.init()} == {"weights", "half", "mean"}
    [expected] = solstice.Trainer().predict(trained[0], [BATCHES[1]])
    np.testing.assert_allclose(model.predict_step(model.init(), BATCHES[1]["x"]), expected, 1e-6)
    with pytest.raises(ExportError, match="has no train_step: it has predict_step"):
        model.train_step(model.init(), BATCHES[0])


def test_wrong_batches_and_states_are_named(run):
    state = run.init()
    short = {"x": X[:3], "y": Y[:3]}
    with pytest.raises(DataError, match=r"`x` must be float32\[8,4\]; it is float32\[3,4\]"):
        run.train_step(state, short)
    with pytest.raises(DataError, match=r"`y` must be int32\[8\]; it is missing"):
        run.train_step(state, {"x": X[:8]})
    with pytest.raises(DataError, match=r"`x` must be float32\[n,4\]"):
        run.eval_step(state, {"x": X[:3].astype(int), "y": Y[:3]})
    with pytest.raises(ExportError, match=r"`mean` must be float32\[4\]; it is missing"):
        run.train_step({n: x for n, x in state.items() if n != "mean"}, BATCHES[0])
    with pytest.raises(ExportError, match="state must be a dict of arrays by path; it is a list"):
        run.train_step([], BATCHES[0])
    with pytest.raises(ExportError, match="`like` has no"):
        run.restore(state, solstice.RegressionExperiment(layer(1), SGD, sample_input=X))


def test_the_file_names_no_file_of_the_code_and_says_what_it_is(path, run):
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            assert b".py" not in archive.read(name), name
    manifest = run.manifest
    assert manifest.versions["jax"] == jax.__version__
    assert f"6 months after the release of jax {jax.__version__}" in manifest.readable
    assert manifest.programs["predict_step"].returns[""].shape == ["n", 3]
    assert "eval_step(float32[n,4], int32[n])" in repr(run)


def test_steps_work_within_jit(run):
    def two(state):
        return run.train_step(run.train_step(state, BATCHES[0])[0], BATCHES[1])

    state, metrics = eqx.filter_jit(two)(run.init())
    assert np.isfinite(metrics.compute()["loss"])
    assert {*state} == {*run.init()}


class Most(solstice.Metrics):
    """Metrics of one array, which merge by their largest."""

    most: Any

    def merge(self, other, /):
        return Most(jnp.maximum(self.most, other.most))

    def compute(self):
        return {"most": self.most, "numbers": {"twice": self.most + self.most}}


class Tiny(solstice.Experiment):
    """One array each: in the state, the batch, the metrics and the predictions."""

    total: Any

    def train_step(self, batch):
        return Tiny(self.total + batch["only"].sum()), Most(batch["only"].max())

    def eval_step(self, batch):
        return self, None

    def predict_step(self, batch):
        return {"sums": batch["only"] + self.total}


def test_trees_of_one_array(tmp_path):
    first, second = {"only": -X[:4, 0]}, {"only": X[4:8, 0]}
    solstice.export(Tiny(jnp.zeros(())), first, tmp_path / "a.zip", platforms="cpu")
    run = solstice.exported(tmp_path / "a.zip")
    state, one = run.train_step(run.init(), first)
    state, two = run.train_step(state, second["only"])
    expected = max(first["only"].max(), second["only"].max())
    assert one.merge(two).compute() == {"most": expected, "numbers/twice": 2 * expected}
    assert state["total"] == pytest.approx(first["only"].sum() + second["only"].sum())
    [(name, sums)] = run.predict_step(state, second).items()
    assert name == "sums"
    np.testing.assert_allclose(sums, second["only"] + state["total"], rtol=1e-6)
    _, nothing = run.eval_step(state, first)
    assert nothing.merge(nothing).compute() == {}


class Odd(solstice.Experiment):
    """What some steps cannot do, by name."""

    size: int = 2
    kind: str = "plain"

    def train_step(self, batch):
        if self.kind == "host":
            jax.debug.print("{}", batch.sum())
        if self.kind == "branch" and batch.sum() > 0:
            return self, None
        new = solstice.replace(self, size=self.size + int(self.kind == "changes"))
        return new, {"loss": batch.sum()}

    def eval_step(self, batch):
        size = len(batch) // self.size if self.kind == "changes" else 1
        metrics = solstice.metrics.Collect(rows=jnp.ones(size))
        return self, metrics if self.kind == "grows" else None

    def epoch_step(self, metrics):
        return self


@pytest.mark.filterwarnings("ignore:Odd.epoch_step")
@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("host", ExportError, "Odd.train_step cannot be exported for cpu"),
        ("branch", ExperimentError, "Odd.train_step cannot be compiled"),
        ("changes", ExportError, "`size` is a Python number that a step changes, and eval_step"),
    ],
)
def test_a_step_that_cannot_leave_is_named(tmp_path, kind, error, words):
    with pytest.raises(error, match=re.escape(words)):
        solstice.export(Odd(kind=kind), X, tmp_path / "a.zip", platforms="cpu")
    assert [*tmp_path.iterdir()] == []


def test_what_is_left_out_is_said(tmp_path):
    with pytest.warns(UserWarning, match="Odd.epoch_step is not exported") as caught:
        solstice.export(Odd(kind="grows"), X, tmp_path / "a.zip", platforms="cpu")
    assert caught[0].filename == __file__
    run = solstice.exported(tmp_path / "a.zip")
    assert run.manifest.left_out["epoch_step"]
    _, metrics = run.eval_step(run.init(), X)
    assert next(iter(metrics.arrays.values())).shape == (1,)
    with pytest.raises(ExportError, match="has no eval_merge: the metrics grow"):
        metrics.merge(metrics)
    with pytest.raises(ExportError, match="has no predict_step"):
        run.predict_step(run.init(), X)
    with pytest.raises(ExportError, match=r"Odd has no predict_step: write"):
        solstice.export_predict(Odd(), X, tmp_path / "b.zip")


def test_a_ready_made_experiment_with_micro_batches(tmp_path):
    exp = solstice.RegressionExperiment(layer(1), ADAM, micro_batches=4, sample_input=X)
    batch = X[:8], X[:8, 0]
    solstice.export(exp, batch, tmp_path / "a.zip", platforms="cpu")
    run = solstice.exported(tmp_path / "a.zip")
    state, metrics = run.train_step(run.init(), batch)
    after, expected = solstice.run_steps(exp, jax.tree.map(lambda x: x[None], batch))
    np.testing.assert_array_equal(state["learner/params/weight"], after.params.weight)
    assert metrics.compute()["rmse"] == pytest.approx(expected.compute()["rmse"], rel=1e-6)
    assert run.predict_step(state, X[:2]).shape == (2,)


class Tensor:
    """A tensor of another library."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def test_tensors_of_other_libraries_are_batches(tmp_path, run):
    tensors = {"x": Tensor(X[:8]), "y": Tensor(Y[:8])}
    path = tmp_path / "new folder" / "a.zip"
    solstice.export_predict(make(), tensors, path, platforms="cpu")
    model = solstice.exported(path)
    found = model.predict_step(model.init(), tensors)
    np.testing.assert_array_equal(found, run.predict_step(run.init(), X[:8]))


@pytest.mark.parametrize("batch", [None, "text", (), solstice.data.batches((X, Y), 8)])
def test_what_is_not_a_batch_is_named(tmp_path, batch):
    with pytest.raises(
        DataError, match=r"batch must have arrays.*write `next\(iter\(train_ds\)\)`"
    ):
        solstice.export(make(), batch, tmp_path / "a.zip")


def test_a_missing_library_and_a_wrong_platform_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='"cpu", "cuda", "tpu", "rocm"'):
        solstice.export(make(), BATCHES[0], tmp_path / "a.zip", platforms=["gpu"])
    with pytest.raises(ValueError, match="platforms must be one or several"):
        solstice.export(make(), BATCHES[0], tmp_path / "a.zip", platforms=[])
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(
        ImportError, match=re.escape('pip install "./packages/solstice-core[export]"')
    ):
        solstice.export(make(), BATCHES[0], tmp_path / "a.zip")


def test_64_bits_need_64_bits(path, tmp_path):
    wide = sealed(path, tmp_path / "wide.zip", lambda manifest: manifest.update(x64=True))
    with pytest.raises(ExportError, match=re.escape('jax.config.update("jax_enable_x64", True)')):
        solstice.exported(wide)
