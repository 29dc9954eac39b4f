"""What a step is planned to need, beside what XLA says of it and what a run takes."""

import itertools
import resource
import sys
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice.inspect import plan
from solstice.testing import Sgd


@pytest.fixture(autouse=True)
def as_users_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def cross_entropy(logits: Any, labels: Any) -> Any:
    shares = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(shares, labels[..., None], -1).mean()


class Training(solstice.Experiment):
    """Momentum, with gradients of the whole batch or of parts of it."""

    params: Any
    moments: Any
    key: Any
    parts: int = eqx.field(static=True)

    def __init__(self, *widths: int, parts: int = 1) -> None:
        self.params = [
            {"w": jnp.full(pair, 0.01), "b": jnp.zeros(pair[1])}
            for pair in itertools.pairwise(widths)
        ]
        self.moments = jax.tree.map(jnp.zeros_like, self.params)
        self.key = jax.random.key(0)
        self.parts = parts

    def loss(self, params: Any, batch: Any) -> Any:
        x, y = batch
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return cross_entropy(x @ params[-1]["w"] + params[-1]["b"], y)

    def train_step(self, batch: Any) -> Any:
        def add(total: Any, part: Any) -> Any:
            one = jax.value_and_grad(self.loss)(self.params, part)
            return jax.tree.map(jnp.add, total, one), None

        loss, grads = jax.value_and_grad(self.loss)(self.params, batch)
        if self.parts > 1:
            split = jax.tree.map(lambda x: x.reshape(self.parts, -1, *x.shape[1:]), batch)
            zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, self.params)
            loss, grads = jax.lax.scan(add, zero, split)[0]
        moments = jax.tree.map(lambda m, g: 0.9 * m + g, self.moments, grads)
        params = jax.tree.map(lambda p, m: p - 0.1 * m, self.params, moments)
        return solstice.replace(self, params=params, moments=moments), {"loss": loss}

    def eval_step(self, batch: Any) -> Any:
        return self, {"loss": self.loss(self.params, batch)}


def images(size: int, width: int) -> Any:
    return jax.ShapeDtypeStruct((size, width), "float32"), jax.ShapeDtypeStruct((size,), "int32")


SMALL = partial(Training, 12, 16, 4)
TRAIN = 64, 200, 200, 10


def xla_of(experiment: Any, method: str, batch: Any) -> Any:
    """What XLA says of a step that is compiled without the library."""
    arrays, rest = eqx.partition(experiment, eqx.is_array)

    def step(arrays: Any, batch: Any) -> Any:
        new, outputs = getattr(type(experiment), method)(eqx.combine(arrays, rest), batch)
        return eqx.filter(new, eqx.is_array), outputs

    donated = (0,) if method == "train_step" else ()
    compiled: Any = jax.jit(step, donate_argnums=donated, keep_unused=True)
    return compiled.lower(arrays, batch).compile().memory_analysis()


@pytest.mark.parametrize(
    ("method", "parts"), [("train_step", 1), ("train_step", 8), ("eval_step", 1)]
)
def test_memory_is_what_xla_says(method: str, parts: int):
    batch = images(2048, 64)
    found = plan(partial(Training, *TRAIN, parts=parts), batch, method=method)
    xla = xla_of(Training(*TRAIN, parts=parts), method, batch)
    assert found.temporary_bytes == pytest.approx(xla.temp_size_in_bytes, rel=0.02)
    assert found.output_bytes == xla.output_size_in_bytes - xla.alias_size_in_bytes
    assert found.peak_bytes == pytest.approx(
        xla.argument_size_in_bytes + found.output_bytes + xla.temp_size_in_bytes, rel=0.02
    )


def test_parts_of_a_batch_need_less():
    temporary = [
        plan(partial(Training, *TRAIN, parts=parts), images(4096, 64)).temporary_bytes
        for parts in (1, 8)
    ]
    assert temporary[1] < temporary[0] / 3


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="CPU programs are told apart by size")
def test_a_trainer_needs_no_more_than_that_and_its_batches():
    x, y = np.zeros((128, 64), np.float32), np.zeros(128, np.int32)
    client: Any = jax.devices()[0].client
    before = client.live_executables()  # held, so that no new program gets the id of an old one
    old = {id(program) for program in before}
    solstice.Trainer().fit(Training(*TRAIN), [(x, y)] * 40)
    new = [program for program in client.live_executables() if id(program) not in old]
    sizes = [program.get_compiled_memory_stats() for program in new]
    run = max(sizes, key=lambda found: found.alias_size_in_bytes)
    found = plan(Training(*TRAIN), (x, y))
    assert run.alias_size_in_bytes == found.state_bytes
    extra = run.temp_size_in_bytes - (found.temporary_bytes or 0)
    assert -0.02 * run.temp_size_in_bytes < extra < x.nbytes + y.nbytes + 4096
    assert run.argument_size_in_bytes - found.state_bytes < 2**23 + 4096


def test_parts_add_up():
    exp = SMALL()
    found = plan(exp, images(128, 12))
    state = sum(x.nbytes for x in jax.tree.leaves(exp))
    assert (found.state_bytes, found.batch_bytes) == (state, 128 * 12 * 4 + 128 * 4)
    parts = (found.output_bytes, found.temporary_bytes, found.program_bytes)
    assert found.peak_bytes == found.state_bytes + found.batch_bytes + sum(p or 0 for p in parts)
    assert 4 <= (found.output_bytes or 0) < 1000  # the loss, and XLA's table of the results


def test_operations_are_those_of_the_products():
    found = plan(partial(Training, *TRAIN), images(128, 64))
    forward = 2 * 128 * (64 * 200 + 200 * 200 + 200 * 10)
    backward = 2 * forward - 2 * 128 * 64 * 200  # no gradient of the images
    assert found.flops == pytest.approx(forward + backward, rel=0.1)


def test_shapes_functions_and_arrays_give_the_same():
    batch = images(8, 12)
    arrays = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), batch)
    found = [plan(e, b) for e, b in [(SMALL(), arrays), (SMALL, batch)]]
    assert found[0] == found[1] == plan(eqx.filter_eval_shape(SMALL), batch)


class Drawn(solstice.Experiment):
    params: Any = None

    def setup(self, batch: Any) -> Any:
        return self if self.params is not None else solstice.replace(self, params=batch * 2.0)

    def train_step(self, batch: Any) -> Any:
        return solstice.replace(self, params=self.params + batch), {}

    def eval_step(self, batch: Any) -> Any:
        return self, {}


class Looping(Drawn):
    def train_step(self, batch: Any) -> Any:
        params = jax.lax.fori_loop(0, 5, lambda _, p: p + batch, self.params)
        return solstice.replace(self, params=params), {}


NUMBERS = jax.ShapeDtypeStruct((1000, 100), "float32")


def test_it_is_set_up_with_the_batch():
    found = plan(Drawn, NUMBERS)
    assert found.state_bytes == found.batch_bytes == 400_000


def test_memory_traffic_is_what_is_read_and_written():
    assert plan(Drawn, NUMBERS).moved_bytes == 3 * 400_000


def test_memory_traffic_of_a_loop_is_unknown():
    found = plan(Looping, NUMBERS)
    assert (found.moved_bytes, found.flops) == (None, pytest.approx(5 * 100_000, rel=0.01))


def test_table():
    found = plan(Drawn, NUMBERS)
    assert str(found).splitlines() == [
        "Drawn.train_step, one step",
        "  operations      100 kFLOP",
        "  state              400 kB",
        "  batch              400 kB",
        f"  outputs       {found.output_bytes:>5} bytes",
        "  temporary         0 bytes",
        "  program           0 bytes",
        "  peak               800 kB",
        "  memory traffic     1.2 MB",
    ]
    assert repr(found) == str(found)


def test_where_xla_does_not_say_it_is_unknown(monkeypatch: pytest.MonkeyPatch):
    for name in ("memory_analysis", "cost_analysis"):
        monkeypatch.setattr(jax.stages.Compiled, name, lambda self: None)
    found = plan(Drawn, NUMBERS)
    unknown = (found.output_bytes, found.temporary_bytes, found.program_bytes, found.peak_bytes)
    assert (*unknown, found.moved_bytes) == (None,) * 5
    assert (found.state_bytes, found.flops) == (400_000, 100_000)
    assert "peak              unknown" in str(found)


def test_a_step_that_is_too_large_for_this_machine_has_a_plan():
    before, arrays = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(jax.live_arrays())
    found = plan(partial(Training, 300_000, 300_000, 10), images(8, 300_000))
    scale = 2**20 if sys.platform == "darwin" else 2**10
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / scale < 500
    assert len(jax.live_arrays()) <= arrays + 10
    assert found.state_bytes == pytest.approx(2 * 4 * 300_000**2, rel=0.01)
    assert (found.peak_bytes or 0) > found.state_bytes


def test_ready_made_experiments_are_set_up_without_memory():
    def make() -> Any:
        net = eqx.nn.Linear(20_000, 20_000, key=jax.random.key(0))
        return solstice.RegressionExperiment(net, Sgd(0.1))

    x = jax.ShapeDtypeStruct((8, 20_000), "float32")
    found = plan(make, (x, x))
    assert found.state_bytes == pytest.approx(2 * 4 * 20_000**2, rel=0.01)
    assert found.name == "RegressionExperiment.train_step"


@pytest.mark.parametrize("given", [3, lambda: 3])
def test_other_things_than_an_experiment_are_refused(given: Any):
    with pytest.raises(TypeError, match="Experiment"):
        plan(given, images(8, 12))


class Unpacking(Drawn):
    def setup(self, batch: Any) -> Any:
        return self

    def train_step(self, batch: Any) -> Any:
        x, y = batch
        return self, {"loss": jnp.sum(x - y)}


def test_batches_that_do_not_fit_are_named():
    with pytest.raises(solstice.DataError, match="cannot unpack its batch"):
        plan(Unpacking, jax.ShapeDtypeStruct((8, 4), "float32"))


class Branching(Drawn):
    def train_step(self, batch: Any) -> Any:
        return (self, {}) if batch.sum() > 0 else (self, {"loss": 1.0})


class Reading(Drawn):
    def setup(self, batch: Any) -> Any:
        scale = float(batch.sum()) if self.params is None else None
        return self if scale is None else solstice.replace(self, params=batch * scale)


def test_a_step_that_cannot_be_compiled_is_named_with_its_line():
    expected = r"Branching\.train_step cannot be compiled.*test_plan\.py:\d+.*batch\.sum\(\) > 0"
    with pytest.raises(solstice.ExperimentError, match=expected):
        plan(Branching, NUMBERS)


def test_a_setup_that_reads_numbers_is_done_before():
    batch = np.ones((4, 2), np.float32)
    with pytest.raises(solstice.ExperimentError, match=r"float\(batch\.sum.*exp\.setup\(batch\)"):
        plan(Reading, batch)
    exp = Reading()
    assert plan(exp.setup(batch), batch).state_bytes == 32  # the line of the message
