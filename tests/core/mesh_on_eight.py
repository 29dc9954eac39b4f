"""Runs on a mesh of eight devices, which have the history of one device.

`test_mesh.py` runs these tests in a process with eight devices.
"""

import hashlib
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import solstice
import solstice.testing as kit
from solstice import ShardingError, _tree
from solstice._engine import Layout, _ownership, _sharding
from solstice._engine._compiled import CompiledStepper
from solstice._engine._placement import SINGLE_DEVICE
from solstice._engine._steps import Carry, run_block
from solstice.checkpoint import CheckpointError
from solstice.data import Masked

RNG = np.random.default_rng(0)
X = RNG.normal(size=(150, 16)).astype(np.float32)
Y = RNG.integers(0, 3, 150).astype(np.int32)
TOLERANCE = 1e-6


class Net(solstice.Experiment):
    """A net with momentum, dropout by a typed key, a raw key, a Python count and a float."""

    params: Any
    momentum: Any
    key: jax.Array
    raw: jax.Array
    count: int
    rate: float
    classes: int = eqx.field(static=True)

    def __init__(self, width: int = 32, classes: int = 3) -> None:
        rng = np.random.default_rng(1)
        self.params = {
            "one": {"kernel": 0.3 * rng.normal(size=(16, width)), "bias": np.zeros(width)},
            "two": {"kernel": 0.3 * rng.normal(size=(width, classes)), "bias": np.zeros(classes)},
        }
        self.params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), self.params)
        self.momentum = jax.tree.map(jnp.zeros_like, self.params)
        self.key, self.raw = jax.random.key(7), jax.random.PRNGKey(8)
        self.count, self.rate, self.classes = 0, 0.1, classes

    def logits(self, params: Any, x: jax.Array, keys: Any = ()) -> jax.Array:
        for key in keys:
            x = x * jax.random.bernoulli(key, 0.8, x.shape).astype(x.dtype)
        one, two = params["one"], params["two"]
        return jnp.tanh(x @ one["kernel"] + one["bias"][None]) @ two["kernel"] + two["bias"][None]

    def loss(self, params: Any, batch: Any, keys: Any = ()) -> Any:
        x, y = batch
        logits = self.logits(params, x, keys)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=-1)
        return -picked.mean(), logits

    def train_step(self, batch: Any) -> Any:
        keys = [jax.random.fold_in(key, self.count) for key in (self.key, self.raw)]
        grad = jax.value_and_grad(self.loss, has_aux=True)
        (loss, logits), grads = grad(self.params, batch, keys)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, self.momentum, grads)
        params = jax.tree.map(lambda p, m: p - self.rate * m, self.params, momentum)
        new = solstice.replace(self, params=params, momentum=momentum, count=self.count + 1)
        return new, solstice.ClassificationMetrics(logits, batch[1], loss, self.classes)

    def eval_step(self, batch: Any) -> Any:
        loss, logits = self.loss(self.params, batch)
        return self, solstice.ClassificationMetrics(logits, batch[1], loss, self.classes)

    def predict_step(self, batch: Any) -> Any:
        return self.logits(self.params, batch[0]), batch[1]


class Losses(solstice.Callback):
    """Keeps the metrics of each step."""

    needs = ("metrics",)
    can_stop = False

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_step_end(self, record: solstice.Record) -> None:
        if record.mode == "train":
            self.rows.append(dict(record.metrics))


def data(size: int = 32, examples: int = 150) -> list[Any]:
    return [(X[i : i + size], Y[i : i + size]) for i in range(0, examples, size)]


def train(
    experiment: Any = None,
    train_ds: Any = None,
    callbacks: Any = (),
    epochs: int = 2,
    **options: Any,
) -> tuple[Any, list[Any], Any]:
    """The trained Experiment, the metrics of all steps, and those of all epochs."""
    losses, fit = Losses(), {}
    for name in ("resume", "strict_resume", "donate", "batch_size", "max_steps"):
        if name in options:
            fit[name] = options.pop(name)
    trainer = solstice.Trainer([losses, *callbacks], **options)
    made = Net() if experiment is None else experiment
    train_ds = data() if train_ds is None else train_ds
    trained = trainer.fit(made, train_ds, data(40), num_epochs=epochs, **fit)
    epochs = [{k: x for k, x in row.items() if k != "span"} for row in trainer.history.rows]
    return trained, losses.rows, epochs


def sha(tree: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        plain = jax.random.key_data(leaf) if hasattr(leaf, "dtype") and is_key(leaf) else leaf
        digest.update(np.asarray(plain).tobytes())
    return digest.hexdigest()


def assert_same_history(one: Any, other: Any, tolerance: float = TOLERANCE) -> None:
    """Each metric of each step and of each epoch."""
    rows, others = [*one[1], *one[2]], [*other[1], *other[2]]
    assert len(rows) == len(others)
    for row, expected in zip(rows, others, strict=True):
        assert row.keys() == expected.keys()
        np.testing.assert_allclose(row["loss"], expected["loss"], rtol=tolerance)
        # All others are made of counts, which are exact.
        assert {**row, "loss": 0} == {**expected, "loss": 0}


@pytest.fixture
def small_fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits small arrays too."""
    monkeypatch.setattr(_sharding, "FSDP_SIZE", 64)


def auto(shape: tuple[int, ...], names: tuple[str, ...]) -> Mesh:
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))


REFERENCE: list[Any] = []


def reference() -> Any:
    if not REFERENCE:
        REFERENCE.append(train())
    return REFERENCE[0]


TWO_AXES = {"*kernel": P(None, "model"), "*": "replicated"}
TOPOLOGIES = {
    "2": {"mesh": 2},
    "4, fsdp": {"mesh": 4, "sharding": "fsdp"},
    "8": {"mesh": "all"},
    "8, fsdp": {"mesh": 8, "sharding": "fsdp"},
}


@pytest.mark.usefixtures("small_fsdp")
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_history_is_that_of_one_device(name: str):
    options = TOPOLOGIES[name]
    given = Net()
    before = sha(given)
    found = train(given, **options)
    assert_same_history(found, reference())
    assert sha(given) == before
    again = train(given, **options)
    assert sha(again[0]) == sha(found[0])
    assert again[1] == found[1]
    kernel = found[0].params["one"]["kernel"].sharding
    assert len(kernel.device_set) == (8 if options["mesh"] == "all" else options["mesh"])
    spec = P(None, "data") if "sharding" in options else P()
    assert kernel.is_equivalent_to(NamedSharding(kernel.mesh, spec), 2)


@pytest.mark.usefixtures("small_fsdp")
def test_an_experiment_that_is_placed_already():
    placed = train(mesh=8, sharding="fsdp")[0]
    expected = train(jax.device_get(placed))
    for options in ({"mesh": 8, "sharding": "fsdp"}, {"mesh": 4}, {"mesh": 1}):
        assert_same_history(train(placed, **options), expected)


@pytest.mark.usefixtures("small_fsdp")
def test_rules_by_path_on_two_axes():
    mesh = auto((4, 2), ("data", "model"))
    rules = {"params/*kernel": P(None, "model"), "*": "fsdp"}
    found = train(Net(classes=4), mesh=mesh, sharding=rules)
    assert_same_history(found, train(Net(classes=4)))
    specs = {path: leaf.sharding.spec for path, leaf in _tree.leaves_by_slashes(found[0]).items()}
    assert specs["params/one/kernel"] == specs["params/two/kernel"] == P(None, "model")
    assert specs["momentum/one/kernel"] == P(None, "data")
    assert specs["params/one/bias"] == specs["key"] == P()
    # The same by a function, with batches on an axis of another name.
    other = auto((2, 4), ("model", "rows"))
    by_function = train(
        Net(classes=4),
        solstice.data.batches((X, Y), 32, on_device=True),
        mesh=other,
        sharding=lambda path, like: P("model") if len(like.shape) == 2 else P(),
    )
    assert_same_history(by_function, found)


def test_a_mesh_of_one_device_is_no_mesh_bit_for_bit():
    [*_, last] = jax.devices()
    one = Mesh(np.array([last]), ("rows",))
    for options in ({"mesh": 1}, {"mesh": 1, "sharding": "fsdp"}, {"mesh": one}):
        found = train(**options)
        assert sha(found[0]) == sha(reference()[0])
        assert found[1:] == reference()[1:]
    assert found[0].params["one"]["kernel"].devices() == {last}


class Sums(solstice.Experiment):
    """Integers, which every number of devices adds up to the same bits."""

    weight: Any
    key: Any

    def train_step(self, batch: Any) -> Any:
        (x,) = batch
        new = solstice.replace(
            self, weight=3 * self.weight + x.sum(0)[None], key=jax.random.split(self.key)[0]
        )
        return new, {"sum": (x.sum() % 1000).astype(jnp.float32)}

    def eval_step(self, batch: Any) -> Any:
        return self, {}


def test_the_trace_is_that_of_one_device(tmp_path: Path):
    numbers = np.random.default_rng(0).integers(0, 99, (80, 16), np.int32)
    data = solstice.data.batches((numbers,), 32, shuffle=True)  # the last batch is divided too
    rules = {"weight": P(None, "data"), "*": P()}
    kinds: dict[str, Any] = {
        "one": {},
        "whole": {"mesh": 8},
        "split": {"mesh": 8, "sharding": rules},
    }
    for name, options in kinds.items():
        start = Sums(jnp.ones((24, 16), jnp.int32), jax.random.key(0))
        trainer = solstice.Trainer([solstice.callbacks.Trace(tmp_path / name, every=2)], **options)
        trainer.fit(start, data, num_epochs=2)
    for name, words in (("whole", "replicated"), ("split", "split")):
        found = solstice.diff(tmp_path / "one", tmp_path / name)
        assert (found.is_equal, found.through) == (True, 6)
        assert any(f"8 devices ({words})" in line for line in found.before or [])


KINDS_OF_DATA: dict[str, Any] = {
    "smaller than the devices": lambda: [*data()[:3], (X[:5], Y[:5])],
    "one at a time": lambda: [(X[:1], Y[:1]), (X[1:2], Y[1:2])],
    "on the device": lambda: solstice.data.batches((X, Y), 32, on_device=True),
    "shuffled on the device": lambda: solstice.data.batches(
        (X, Y), 40, shuffle=True, on_device=True
    ),
    "JAX arrays": lambda: [jax.tree.map(jnp.asarray, batch) for batch in data()],
    "int64": lambda: [(x.astype(np.float64), y.astype(np.int64)) for x, y in data()],
    "iterator": lambda: lambda: iter(data(30)),
}


@pytest.mark.filterwarnings("ignore:.*devices cannot divide a batch")
@pytest.mark.parametrize("kind", KINDS_OF_DATA)
@pytest.mark.parametrize("calls", [None, 1])
def test_any_batches(kind: str, calls: int | None):
    found, expected = (
        train(train_ds=KINDS_OF_DATA[kind](), epochs=1, steps_per_call=calls, **options)
        for options in ({"mesh": 8}, {})
    )
    assert_same_history(found, expected)


class OfMany(Net):
    """A batch of leaves with other leading lengths, of a number and of a text."""

    def train_step(self, batch: Any) -> Any:
        x, y = batch["x"], batch["y"]
        scale = batch["table"].sum() + batch["eight"].sum() * batch["number"]
        return super().train_step((x * scale, y))


def test_leaves_of_other_leading_lengths():
    rng = np.random.default_rng(2)
    batches = [
        {"x": x, "y": y, "table": 0.1 * rng.normal(size=(3, 2)), "number": np.float32(0.5),
         "eight": 0.1 * rng.normal(size=8), "name": "a text"}
        for x, y in data()
    ]  # fmt: skip

    class Each(OfMany):
        def eval_step(self, batch: Any) -> Any:
            return super().eval_step(batch)

    assert_same_history(*(train(Each(), batches, **o) for o in ({"mesh": 8}, {})))


@pytest.mark.usefixtures("small_fsdp")
def test_masked_batches_and_micro_batches():
    def made(micro: int) -> Any:
        return solstice.ClassificationExperiment(Tanh(), Momentum(), 3, micro_batches=micro)

    masked = [Masked(batch, np.arange(len(batch[1])) % 3 > 0) for batch in data(32, 128)]
    for micro, batches, sharding in [
        (1, masked, "fsdp"), (4, masked, "replicated"), (4, data(32, 148), "fsdp")
    ]:  # fmt: skip
        options = {"mesh": 8, "sharding": sharding}
        found, expected = (train(made(micro), batches, **o) for o in (options, {}))
        assert_same_history(found, expected)


@jax.tree_util.register_static
class Tanh:
    """A Model of the core's protocol."""

    def init(self, key: jax.Array, x: Any, /) -> Any:
        return 0.3 * jax.random.normal(key, (x.shape[-1], 3)), {}

    def forward(self, params: Any, state: Any, x: Any, /, *, train: bool, key: Any = None) -> Any:
        if train and key is not None:
            x = x * jax.random.bernoulli(key, 0.8, x.shape).astype(x.dtype)
        return jnp.tanh(x) @ params, state


@jax.tree_util.register_static
class Momentum:
    """An Optimizer of the core's protocol."""

    def init(self, params: Any, /) -> Any:
        return jax.tree.map(jnp.zeros_like, params)

    def step(self, grads: Any, state: Any, params: Any, /, **_: Any) -> Any:
        state = jax.tree.map(lambda v, g: 0.9 * v + g, state, grads)
        return jax.tree.map(lambda p, v: p - 0.1 * v, params, state), state

    def eval_params(self, state: Any, params: Any, /) -> Any:
        del state
        return params


@pytest.mark.usefixtures("small_fsdp")
def test_predictions_and_evaluations_are_those_of_one_device():
    on_mesh = solstice.Trainer(mesh="all", sharding="fsdp")
    on_one = solstice.Trainer()
    for batches in (data(32), data(5)):
        for one, other in zip(
            on_mesh.predict(Net(), batches), on_one.predict(Net(), batches), strict=True
        ):
            assert all(type(x) is np.ndarray for x in one)
            np.testing.assert_allclose(one[0], other[0], rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(one[1], other[1])
        for name in ("validate", "test"):
            one, other = (getattr(t, name)(Net(), batches) for t in (on_mesh, on_one))
            assert one["accuracy"] == other["accuracy"]
            assert one["loss"] == pytest.approx(other["loss"], rel=TOLERANCE)


class Growing(Net):
    """Metrics that grow: all logits of the epoch; and outputs that are kept."""

    def eval_step(self, batch: Any) -> Any:
        _, logits = self.loss(self.params, batch)
        return self, Logits(logits, batch[1])


class Logits(solstice.Metrics):
    logits: Any
    labels: Any

    def merge(self, other: Any) -> Any:
        pairs = zip((self.logits, self.labels), (other.logits, other.labels), strict=True)
        return Logits(*(jnp.concatenate(pair) for pair in pairs))

    def compute(self) -> Any:
        confusion = np.zeros((3, 3), int)
        np.add.at(confusion, (np.asarray(self.labels), np.asarray(self.logits).argmax(-1)), 1)
        return {"confusion": confusion, "mean": self.logits.mean()}


@pytest.mark.parametrize("size", [1, 7, 64])
def test_error_bars_are_those_of_one_device(size: int):
    """Bounds of counts are equal; those of a loss differ by its rounding."""
    options: dict[str, Any] = {"batch_size": size, "confidence": 0.95, "replicates": 100}
    alone = solstice.Trainer().test(Net(), (X, Y), **{**options, "batch_size": 150})
    for layout in ("replicated", "fsdp"):
        trainer = solstice.Trainer(mesh=8, sharding=layout)
        found = trainer.test(Net(), (X, Y), **options)
        assert {*found} == {*alone}
        for name, value in alone.items():
            close = TOLERANCE * 20 if "loss" in name else 0
            assert found[name] == pytest.approx(value, rel=close, abs=close), (layout, name)
    assert alone["accuracy_low"] < alone["accuracy"] < alone["accuracy_high"]


def test_growing_metrics_are_merged():
    one, other = (solstice.Trainer(mesh=m).validate(Growing(), data(32)) for m in (8, None))
    np.testing.assert_array_equal(one["confusion"], other["confusion"])
    assert one["mean"] == pytest.approx(other["mean"], rel=1e-5)


class StopAt(solstice.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, record: solstice.Record) -> None:
        if record.step == self.step:
            raise solstice.Stop


@pytest.mark.usefixtures("small_fsdp")
@pytest.mark.parametrize("on_device", [False, True])
def test_a_stop_within_a_block_leaves_what_that_step_left(on_device: bool):
    batches = solstice.data.batches((X, Y), 16, on_device=on_device)
    options: Any = {"mesh": 8, "sharding": "fsdp", "train_ds": batches}
    stopped = train(callbacks=[StopAt(7)], **options)[0]
    assert sha(stopped) == sha(train(max_steps=7, **options)[0])
    assert int(stopped.count) == 7


class Keeps(solstice.Callback):
    """Keeps Experiments, and what they were."""

    needs = ("experiment", "outputs", "batch")
    every = 3
    can_stop = False

    def __init__(self) -> None:
        self.kept: list[tuple[Any, str]] = []

    def on_step_end(self, record: solstice.Record) -> None:
        self.kept.append((record.experiment, sha(record.experiment)))

    def on_epoch_end(self, record: solstice.Record) -> None:
        self.kept.append((record.experiment, sha(record.experiment)))


OPTIONS: dict[str, Any] = {
    "overfit_batches": {"overfit_batches": 2},
    "val_every_n_steps": {"val_every_n_steps": 3},
    "prefetch": {"prefetch": 2},
    "sanity_val_batches": {"sanity_val_batches": 1},
    "limits": {"limit_train_batches": 3, "limit_val_batches": 2},
}


@pytest.mark.usefixtures("small_fsdp")
@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_of_the_trainer_does_what_it_does_on_one_device(name: str):
    keeps, donate = Keeps(), name == "limits"
    on_mesh = train(mesh=8, sharding="fsdp", callbacks=[keeps], donate=donate, **OPTIONS[name])
    assert_same_history(on_mesh, train(**OPTIONS[name]))
    assert len(keeps.kept) >= 4
    for experiment, then in keeps.kept:
        assert sha(experiment) == then


@pytest.mark.usefixtures("small_fsdp")
@pytest.mark.parametrize("is_placed", [False, True])
def test_with_donate_the_given_experiment_is_given_up(
    is_placed: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_ownership, "_SMALL_BYTES", -1)  # only what others hold is copied
    given = Net()
    options: Any = {"mesh": 8, "sharding": "fsdp"}
    expected = sha(train(given, **options)[0])
    if is_placed:
        given = place(given, auto((8,), ("data",)))
    trained = train(given, donate=True, **options)[0]
    assert sha(trained) == expected
    assert given.params["one"]["kernel"].is_deleted()


def place(experiment: Any, mesh: Mesh) -> Any:
    """On a mesh by hand, split where `small_fsdp` splits."""

    def put(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        spec = P(None, "data") if leaf.shape == (16, 32) else P()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(put, experiment)


def test_numpy_leaves_and_python_numbers():
    given = jax.device_get(Net())
    assert isinstance(given.params["one"]["kernel"], np.ndarray)
    found = train(given, mesh=8)
    assert_same_history(found, reference())
    assert int(found[0].count) == 10
    assert found[0].rate == np.float32(0.1)


def test_a_constant_that_the_step_closes_over():
    [*_, last] = jax.devices()
    scale = jax.device_put(jnp.full(16, 0.5), last)

    class Closes(Net):
        def train_step(self, batch: Any) -> Any:
            return super().train_step((batch[0] * scale[None], batch[1]))

    assert_same_history(train(Closes(), mesh=4), train(Closes(), mesh=1))


def test_a_step_that_cannot_be_compiled_is_refused():
    class Branches(Net):
        def train_step(self, batch: Any) -> Any:
            return super().train_step(batch) if batch[0].sum() > 0 else (self, {})

    for mesh in (8, auto((1, 8), ("data", "model"))):
        with pytest.raises(solstice.ExperimentError, match="on a mesh of 8 devices"):
            solstice.Trainer(mesh=mesh).fit(Branches(), data())


WRONG: dict[str, tuple[Any, Any, str]] = {
    "too many": (9, "replicated", 'mesh=9 asks for 9 .* has 8 .*Write mesh="all"'),
    "no match": (8, {"*kernels": P("data")}, r"'\*kernels', which matches no array .*params/one"),
    "shadowed": (8, {"*": "fsdp", "*kernel": P()}, r"'\*kernel', and patterns before it match all"),
    "twice": (8, {"params/one/kernel": P("data", "data")}, "names an axis of the mesh twice"),
    "not divided": (8, {"params/two/kernel": P(None, "data")}, "8 devices cannot divide .* of 3"),
    "no such axis": (8, {"*one/kernel": P("model")}, "no axis 'model'; its axes are 'data'"),
    "too long": (8, {"*bias": P(None, "data")}, "is for 2 axes, and the array has 1"),
    "key": (8, {"key": P("data")}, "is for 1 axes, and the array has 0"),
    "on one device": (1, {"*kernels": P("data")}, r"'\*kernels', which matches no array"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_meshes_and_rules_are_named(name: str):
    mesh, sharding, said = WRONG[name]
    trainer = solstice.Trainer(mesh=mesh, sharding=sharding)
    for run in (trainer.fit, trainer.validate, lambda e, d: list(trainer.predict(e, d))):
        with pytest.raises(ShardingError, match=said):
            run(Net(), data())


def test_explicit_axes_are_refused_with_the_line_to_write():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    with pytest.raises(ShardingError, match="axes of the types Explicit") as caught:
        solstice.Trainer(mesh=mesh).fit(Net(), data())
    line = str(caught.value).partition("Write ")[2]
    assert_same_history(train(mesh=eval(line, {"jax": jax})), reference())


def test_batches_that_the_user_has_split_are_refused():
    sharding = NamedSharding(auto((8,), ("data",)), P("data"))
    spread = [jax.device_put(batch, sharding) for batch in data(32, 128)]
    with pytest.raises(solstice.DataError, match=r"batch\[0\].* 8 devices") as caught:
        train(train_ds=spread, mesh=8)
    assert "jax.device_get(batch)" in str(caught.value)
    assert_same_history(*(train(train_ds=jax.device_get(spread), mesh=m) for m in (8, None)))


@pytest.mark.usefixtures("small_fsdp")
@pytest.mark.parametrize("saved_on", [{"mesh": 8, "sharding": "fsdp"}, {}])
def test_a_run_is_resumed_on_any_mesh(saved_on: Any, tmp_path: Path):
    batches = solstice.data.batches((X, Y), 32, shuffle=True)

    def run(folder: str, epochs: int, resume: str | None = "last", **options: Any) -> Any:
        saver = solstice.callbacks.Checkpoint(tmp_path / folder)
        return train(None, batches, [saver], epochs, resume=resume, **options)

    whole = run("whole", 3, **saved_on)
    topologies = [*TOPOLOGIES.values(), {"mesh": 1}, {}, {"mesh": auto((4, 2), ("data", "m"))}]
    for index, options in enumerate(topologies):
        run(f"{index}", 1, **saved_on)
        same = options == saved_on or (not saved_on and options == {"mesh": 1})
        if same:
            resumed = run(f"{index}", 3, strict_resume=True, **options)
            assert sha(resumed[0]) == sha(whole[0])
        else:
            said = r"it ran on \d device.* of kind cpu, and this is|split over the devices in"
            with pytest.raises(CheckpointError, match=said):
                run(f"{index}", 3, strict_resume=True, **options)
            with pytest.warns(UserWarning, match=said):
                resumed = run(f"{index}", 3, **options)
        assert len(resumed[1]) == 10
        assert_same_history(resumed, (None, whole[1][-10:], whole[2][-len(resumed[2]) :]))


def test_a_batch_that_no_device_count_divides_is_named():
    few = [(X[:13], Y[:13])] * 3
    said = "cannot divide a batch of 13 .* Use batches of 15"
    with pytest.warns(UserWarning, match=said) as found:
        solstice.Trainer(mesh=3).fit(Net(), few)
    (warning,) = found
    assert warning.filename == __file__
    solstice.Trainer(mesh=np.int64(8)).fit(Net(), data())  # and here nothing warns


@pytest.mark.parametrize(
    ("rule", "error", "said"),
    [
        (
            {"*": None},
            TypeError,
            r"sharding\['\*'\] must be a jax.sharding.PartitionSpec.* is None",
        ),
        ({"*": "x"}, ValueError, r"sharding\['\*'\] must be .* it is 'x'"),
        ("fdsp", ValueError, "sharding must be .* it is 'fdsp'"),
        (lambda path, like: None, TypeError, "the sharding of '.*' must be .* it is None"),
    ],
)
def test_what_is_not_a_sharding_is_refused(rule: Any, error: Any, said: str):
    with pytest.raises(error, match=said):
        solstice.Trainer(mesh=8, sharding=rule).fit(Net(), data())


def test_ready_made_experiments_take_a_mesh():
    net = eqx.nn.MLP(16, 3, 32, 1, key=jax.random.key(0))
    exp = solstice.ClassificationExperiment(net, kit.Sgd(), num_classes=3)
    given: Any = {"batch_size": 16}
    one = exp.train((X[:64], Y[:64]), callbacks=[], **given)
    eight = exp.train((X[:64], Y[:64]), callbacks=[], mesh=8, sharding="fsdp", **given)
    assert len(jax.tree.leaves(eight.learner.params)[0].devices()) == 8
    test = (X[:16], Y[:16])
    for key, value in one.test(test, callbacks=[], **given).items():
        found = eight.test(test, callbacks=[], mesh="all", **given)[key]
        np.testing.assert_allclose(found, value, rtol=1e-5)
    np.testing.assert_allclose(
        eight.predict(test, mesh=8, **given), one.predict(test, **given), rtol=1e-5
    )


class Fitted(solstice.Experiment):
    """Fits a mean by gradient descent, with the rate in its state."""

    mean: jax.Array
    opt_state: Any

    def train_step(self, batch: Any) -> tuple[Any, Any]:
        rate = self.opt_state["hyperparams"]["learning_rate"]
        loss, slope = jax.value_and_grad(lambda mean: jnp.mean((mean[None] - batch) ** 2))(
            self.mean
        )
        return solstice.replace(self, mean=self.mean - rate * slope), {"loss": loss}

    def eval_step(self, batch: Any) -> tuple[Any, Any]:
        raise NotImplementedError


def test_a_learning_rate_is_found_on_a_mesh():
    exp = Fitted(jnp.zeros(16), {"hyperparams": {"learning_rate": jnp.float32(0)}})
    data = [X[i : i + 32] + 5 for i in range(0, 128, 32)]
    given: Any = {"lowest": 1e-4, "highest": 1e3}
    one, eight = (solstice.find_learning_rate(exp, data, **given, mesh=m) for m in (None, 8))
    np.testing.assert_allclose(eight.losses, one.losses, rtol=1e-5)
    with pytest.raises(ShardingError):
        solstice.find_learning_rate(exp, data, mesh=64)


def test_a_large_array_that_no_axis_divides_is_named():
    odd = 2**13 + 1

    class Wide(Net):
        table: Any

        def __init__(self) -> None:
            super().__init__()
            self.table = jnp.ones((odd, 9))

    trainer = solstice.Trainer(mesh="all", sharding="fsdp")
    with pytest.warns(UserWarning, match=r"divide no axis of `table`, float32\[8193, 9\]") as found:
        trainer.fit(Wide(), data(), data())
    (warning,) = found
    assert warning.filename == __file__
    said = str(trainer.explain())
    assert "large, but whole on each device: table, 294,948 bytes" in said
    assert "mesh: 8 ('data') devices" in said


def test_compilations_and_shardings_are_those_of_one_device(caplog: Any):
    counts = []
    for options in ({}, {"mesh": 8}, {"mesh": 8, "sharding": "fsdp"}):
        net = Net(width=24 + len(options))  # a program of its own
        with jax.log_compiles(), caplog.at_level("WARNING"):
            caplog.clear()
            train(net, **options)
        counts.append(sum("Compiling" in m and "run" in m.split()[1] for m in caplog.messages))
    assert counts == [counts[0]] * 3


def block_on(mesh: Any, sharding: str, experiment: Net) -> tuple[Any, int]:
    """The stepper of an Experiment, and the operations of its compiled block on each device."""
    layout = Layout.of(mesh, sharding)
    placement = SINGLE_DEVICE if layout is None else layout.placement()
    batch = (np.resize(X, (256, 16)), np.resize(Y, 256))
    stepper = CompiledStepper(experiment, "train_step", batch, placement=placement)
    stacked = placement.put(jax.tree.map(lambda x: np.stack([x] * 4), batch))

    def run(arrays: Any, totals: Any, is_empty: Any, batches: Any, count: Any) -> Any:
        carry = Carry(arrays, totals, is_empty)
        _, after, kept = run_block(stepper._steps, carry, batches, count)
        return after.arrays, after.totals, kept

    carry = stepper._carry
    others = placement.put((carry.is_empty, stacked, np.uint32(4)))
    cost: Any = jax.jit(run).lower(carry.arrays, carry.totals, *others).compile().cost_analysis()
    return stepper, cost["flops"]


def test_fsdp_divides_the_memory_and_the_work():
    def nbytes_on_one(stepper: Any) -> int:
        return sum(
            x.addressable_shards[0].data.nbytes for x in stepper._carry.arrays if not is_key(x)
        )

    net = Net(width=2**13)
    one, flops = block_on(None, "replicated", net)
    total = nbytes_on_one(one)
    for sharding in ("replicated", "fsdp"):
        spread, each = block_on(8, sharding, net)
        assert each < flops / 6
        small = 4 * 3 * 2**13 * 2 + 4 * 2**13 * 2 + 1000  # below 2**16 elements
        most = total / 8 + small if sharding == "fsdp" else total
        assert nbytes_on_one(spread) <= most
        assert f"state on each: {nbytes_on_one(spread) + 8:,} bytes" in spread.notes[0]


def is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@pytest.mark.usefixtures("small_fsdp")
def test_the_summary_shows_the_bytes_on_each_device():
    net = Net(width=64)
    rules = {"momentum/*": "fsdp", "params/one/kernel": P("data"), "*": "replicated"}
    for sharding in ("replicated", "fsdp", rules):
        found = solstice.summary(net, mesh=8, sharding=sharding)
        trained = train(net, data(32, 64), epochs=1, mesh=8, sharding=sharding)[0]
        arrays = jax.tree.leaves((trained.params, trained.momentum))
        each = sum(x.addressable_shards[0].data.nbytes for x in arrays)
        assert found.device_bytes == each + 16  # of the keys
        assert found.num_devices == 8
        assert sum(part.device_bytes or 0 for part in found.parts) == found.device_bytes
        assert "on each of 8 devices" in str(found)
    assert solstice.summary(net).device_bytes is None
    assert "bytes on each" not in str(solstice.summary(net))
    with pytest.raises(ShardingError, match="matches no array"):
        solstice.summary(net, mesh=8, sharding={"*kernels": "fsdp"})


def test_the_plan_is_that_of_each_device():
    net, batch = Net(width=2**13), (np.resize(X, (256, 16)), np.resize(Y, 256))
    one = solstice.plan(net, batch)
    whole, split = (
        solstice.plan(net, batch, mesh=8, sharding=sharding) for sharding in ("replicated", "fsdp")
    )
    assert one.num_devices == 1
    for found in (whole, split):
        assert found.num_devices == 8
        assert found.batch_bytes == one.batch_bytes // 8
        assert found.flops == one.flops // 8
        assert 0 < (found.peak_bytes or 0) < (one.peak_bytes or 0)
        assert "train_step, one step, on each of 8 devices" in str(found)
    assert whole.state_bytes == one.state_bytes > 2 * split.state_bytes
    # 3 examples, which 8 devices do not divide, are whole on each.
    odd = solstice.plan(net, (X[:3], Y[:3]), mesh=8, method="eval_step")
    assert odd.batch_bytes == X[:3].nbytes + Y[:3].nbytes
    by_shapes = solstice.plan(lambda: Net(width=2**13), batch, mesh=8, sharding="fsdp")
    assert by_shapes.state_bytes == split.state_bytes
