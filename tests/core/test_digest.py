"""The digest of a step: equal in all processes, another for a step that computes otherwise."""

import functools
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice._engine import CompiledStepper, _placement
from solstice._engine._digest import digest_of_code, digest_of_jaxpr
from solstice.callbacks import Checkpoint
from solstice.checkpoint import CheckpointError
from solstice.data import batches

X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)
TABLE = np.arange(4, dtype=np.float32)


def squared(x: Any, y: Any) -> Any:
    return (x - y) ** 2


class Linear(solstice.Experiment):
    """Gradient descent whose parts can each be another."""

    w: jax.Array
    key: jax.Array
    rate: Any = eqx.field(static=True, default=0.1)
    loss: Any = eqx.field(static=True, default=squared)
    act: Any = eqx.field(static=True, default=jnp.tanh)
    scale: float = 1.0

    def rate_at(self, step: Any) -> Any:
        return self.rate(step) if callable(self.rate) else self.rate

    def losses(self, w: jax.Array, batch: Any) -> Any:
        x, y = batch
        return self.loss(self.act(x @ w), y.astype(x.dtype)).mean()

    def train_step(self, batch: Any) -> Any:
        key, draw = jax.random.split(self.key)
        loss, grad = jax.value_and_grad(self.losses)(self.w, batch)
        noise = jax.random.normal(draw, grad.shape, grad.dtype)
        new = self.w - (self.rate_at(noise[0]) * grad).astype(self.w.dtype)
        return solstice.replace(self, w=new, key=key), {"loss": loss}

    def eval_step(self, batch: Any) -> Any:
        return self, {"loss": self.losses(self.w, batch)}


class Edited(Linear):
    def train_step(self, batch: Any) -> Any:
        new, metrics = Linear.train_step(self, batch)
        return solstice.replace(new, w=new.w * 0.5), metrics


class Printing(Linear):
    def train_step(self, batch: Any) -> Any:
        jax.debug.print("{}", self.w)
        return Linear.train_step(self, batch)


class Renamed(Linear):
    def renamed(self, batch: Any) -> Any:
        return Linear.train_step(self, batch)

    train_step = renamed


def linear(kind: type[Linear] = Linear, dtype: Any = np.float32, **parts: Any) -> Linear:
    return kind(jnp.zeros(4, dtype), jax.random.key(0), **parts)


def scaled(by: Any) -> Any:
    return lambda x, y: by * squared(x, y)


def with_a_table(table: Any) -> Any:
    return lambda x, y: squared(x, y) * jnp.asarray(table).sum()


OTHERS: dict[str, Any] = {
    "as it was": linear,
    "rate": lambda: linear(rate=0.2),
    "rate to the last digit": lambda: linear(rate=0.10000001),
    "a schedule": lambda: linear(rate=lambda step: 0.1 * step),
    "another schedule": lambda: linear(rate=lambda step: 0.2 * step),
    "loss": lambda: linear(loss=lambda x, y: abs(x - y)),
    "a number in a closure": lambda: linear(loss=scaled(3.0)),
    "another number in a closure": lambda: linear(loss=scaled(4.0)),
    "an array in a closure": lambda: linear(loss=with_a_table(TABLE)),
    "another array in a closure": lambda: linear(loss=with_a_table(TABLE[::-1])),
    "a key in a closure": lambda: linear(
        loss=lambda x, y: squared(x, y) + jax.random.normal(jax.random.key(5))
    ),
    "another key in a closure": lambda: linear(
        loss=lambda x, y: squared(x, y) + jax.random.normal(jax.random.key(6))
    ),
    "activation": lambda: linear(act=jax.nn.relu),
    "another activation": lambda: linear(act=jax.nn.gelu),
    "edited step": lambda: linear(Edited),
    "dtype": lambda: linear(dtype=jnp.bfloat16),
    "host function": lambda: linear(
        act=lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
    ),
}
"""Steps that differ from one another; `as it was` is the first."""


def digest(experiment: solstice.Experiment, method: str = "eval_step") -> Any:
    dtype = experiment.w.dtype if isinstance(experiment, Linear) else X.dtype
    return CompiledStepper(experiment, method, (X.astype(dtype), Y)).traced.digest()


def digests() -> dict[str, str]:
    # The function of the host has no derivative.
    methods = {name: "eval_step" if "host" in name else "train_step" for name in OTHERS}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return {name: digest(make(), methods[name]).digest for name, make in OTHERS.items()}


def test_each_other_step_has_another_digest():
    found = digests()
    assert len({*found.values()}) == len(OTHERS)


@pytest.mark.slow
def test_the_digest_is_the_same_in_another_process_and_with_cold_caches(tmp_path: Path):
    here = digests()
    jax.clear_caches()
    assert digests() == here
    code = "import json, test_digest; print(json.dumps(test_digest.digests()))"
    for seed in ("1", "2"):  # of hashes, on which the order of sets depends
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout) == here


@pytest.mark.parametrize(
    "make",
    [
        lambda: linear(Printing),
        lambda: linear(Renamed),
        lambda: linear(loss=lambda x, y: (x - y) ** 2),
        lambda: linear(scale=2.0),
    ],
    ids=["a print", "a name", "the same loss", "a number of the state"],
)
def test_what_computes_the_same_has_the_same_digest(make: Any):
    assert digest(make(), "train_step").digest == digest(linear(), "train_step").digest


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: linear(rate=0.2), "the numbers 0.1 became 0.2"),
        (lambda: linear(act=jnp.cos), "the operations tanh became cos"),
        (lambda: linear(loss=scaled(3.0)), "the numbers nothing became 3"),
    ],
)
def test_what_changed_is_said(make: Any, said: str):
    assert said in digest(make()).changes(digest(linear())) or said in digest(
        make(), "train_step"
    ).changes(digest(linear(), "train_step"))


def test_the_order_of_operations_counts():
    one = jax.make_jaxpr(lambda x, y: jnp.sin(x) - jnp.cos(y))(1.0, 1.0)
    other = jax.make_jaxpr(lambda x, y: jnp.sin(y) - jnp.cos(x))(1.0, 1.0)
    assert digest_of_jaxpr(one) != digest_of_jaxpr(other)
    assert "order" in digest_of_jaxpr(other).changes(digest_of_jaxpr(one))


def test_code_that_is_not_traced_has_a_digest_of_what_it_closes_over():
    def make(rate: float, inner: Any = None) -> Any:
        def step(x: float, default: float = 1.0) -> float:
            return rate * x + default + (step(x) if inner is step else 0)

        return step

    same = digest_of_code(make(0.1))
    assert digest_of_code(make(0.1)) == same
    assert digest_of_code(make(0.2)) != same
    assert digest_of_code(functools.partial(make(0.1), default=2.0)) != same
    assert digest_of_code(lambda x: x) != digest_of_code(lambda x: -x)


# In a run that is resumed


def edited(**methods: Any) -> type[Linear]:
    """`Linear` as it would be after its source was edited: of the same name."""
    return type("Linear", (Linear,), {"__module__": Linear.__module__, **methods})


def fit(folder: Path, experiment: Linear, epochs: int, *, strict: bool = True) -> Any:
    data = batches((X, Y), 4, shuffle=True)
    return solstice.Trainer([Checkpoint(folder)]).fit(
        experiment, data, data, num_epochs=epochs, resume="last", strict_resume=strict
    )


EDITS: dict[str, Any] = {
    "rate": {"rate_at": lambda self, step: 0.2},
    "schedule": {"rate_at": lambda self, step: 0.1 * step},
    "loss": {"losses": lambda self, w, batch: abs(batch[0] @ w).mean()},
    "step": {"train_step": Edited.train_step},
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_another_step_is_named_and_with_strict_resume_refused(tmp_path: Path, edit: Any):
    fit(tmp_path / "run", linear(), 1)
    with pytest.raises(CheckpointError, match="train_step computes something else: the "):
        fit(tmp_path / "run", linear(edited(**edit)), 2)
    with pytest.warns(UserWarning, match="train_step computes something else: the "):
        fit(tmp_path / "run", linear(edited(**edit)), 2, strict=False)


def test_another_evaluation_is_named(tmp_path: Path):
    def negated(self: Linear, batch: Any) -> Any:
        return self, {"loss": -self.losses(self.w, batch)}

    fit(tmp_path / "run", linear(), 1)
    with pytest.raises(CheckpointError, match="exactly: eval_step computes something else"):
        fit(tmp_path / "run", linear(edited(eval_step=negated)), 2)


def test_the_same_step_is_accepted(tmp_path: Path):
    fit(tmp_path / "run", linear(), 1)
    jax.clear_caches()
    fit(tmp_path / "run", linear(edited(train_step=Printing.train_step)), 2)


def test_the_first_batch_may_have_another_shape(tmp_path: Path):
    """The digest is that of the step for batches as the saved run had them."""

    def warned(first: int, epochs: int, experiment: Linear) -> str:
        data = [(X[:length], Y[:length]) for length in (first, 3, 4)]
        trainer = solstice.Trainer([Checkpoint(tmp_path / "run")])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(experiment, data, num_epochs=epochs, resume="last")
        return " ".join(str(warning.message) for warning in caught)

    warned(5, 1, linear())
    assert "computes something else" not in warned(6, 2, linear())
    assert "numbers 0.1 became 0.2" in warned(7, 3, linear(edited(**EDITS["rate"])))


def test_a_scalar_of_the_state_that_the_checkpoint_replaces_is_named(tmp_path: Path):
    """Such as an injected learning rate: the run goes on with the saved value."""
    was = r"`\.scale` was 1\.0 when the run started and is 0\.5"
    fit(tmp_path / "run", linear(scale=1.0), 1)
    with pytest.raises(CheckpointError, match=was):
        fit(tmp_path / "run", linear(scale=0.5), 2)
    for epochs in (2, 3):  # the value of the first run is in force, after a resume too
        with pytest.warns(UserWarning, match=was):
            fit(tmp_path / "run", linear(scale=0.5), epochs, strict=False)
    fit(tmp_path / "run", linear(scale=1.0), 4)


def test_a_step_that_cannot_be_compiled_is_compared_by_its_code(tmp_path: Path):
    def below(most: float) -> type[Linear]:
        def train_step(self: Linear, batch: Any) -> Any:
            assert float(self.w[0]) < most
            return Linear.train_step(self, batch)

        return edited(train_step=train_step)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*cannot be compiled")
        fit(tmp_path / "run", linear(below(10.0)), 1)
        fit(tmp_path / "run", linear(below(10.0)), 2)
        with pytest.raises(CheckpointError, match="train_step computes something else"):
            fit(tmp_path / "run", linear(below(20.0)), 3)


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ((1, None), (2, None), r"ran on 1 device of .* this is 2 devices \(replicated\) of kind"),
        ((2, None), (1, None), r"ran on 2 devices \(replicated\) of .* this is 1 device of kind"),
        ((2, None), (2, "data"), r"2 devices \(replicated\) of .* this is 2 devices \(split\) of"),
        ((2, "data"), (2, "rows"), "split over the devices in another way"),
    ],
)
def test_another_topology_is_named(tmp_path: Path, was: Any, now: Any, said: str):
    def placed(count: int, axis: str | None) -> Linear:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), (axis or "data",))
        spec = jax.sharding.PartitionSpec(axis)
        w = jax.device_put(jnp.zeros(4), jax.sharding.NamedSharding(mesh, spec))
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        return Linear(w, jax.device_put(jax.random.key(0), whole))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not split batches")
        fit(tmp_path / "run", placed(*was), 1)
        with pytest.raises(CheckpointError, match=said):
            fit(tmp_path / "run", placed(*now), 2)
        fit(tmp_path / "run", placed(*was), 2)


@pytest.mark.parametrize(
    ("flags", "platform", "is_set"),
    [
        ("", "cpu", True),
        ("", "gpu", False),
        ("--xla_gpu_deterministic_ops=true", "gpu", True),
        ("--xla_dump_to=/tmp  --xla_gpu_deterministic_ops", "gpu", True),
        ("--xla_gpu_deterministic_ops=1 --xla_gpu_deterministic_ops=false", "gpu", False),
        ("--xla_gpu_deterministic_ops_too=true", "gpu", False),
    ],
)
def test_the_flag_for_equal_bits_on_a_gpu_is_read(
    monkeypatch: pytest.MonkeyPatch, flags: str, platform: str, is_set: bool
):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert _placement._is_deterministic(platform) == is_set


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        (True, False, "set `XLA_FLAGS=--xla_gpu_deterministic_ops=true` before Python starts"),
        (False, False, "set `XLA_FLAGS=--xla_gpu_deterministic_ops=true` before Python starts"),
        (False, True, "xla_gpu_deterministic_ops was False, and is True"),
    ],
)
def test_a_run_whose_device_may_give_other_bits_is_not_resumed_strictly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: bool, now: bool, said: str
):
    monkeypatch.setattr(_placement, "_is_deterministic", lambda platform: was)
    fit(tmp_path / "run", linear(), 1)
    monkeypatch.setattr(_placement, "_is_deterministic", lambda platform: now)
    with pytest.raises(CheckpointError, match=said):
        fit(tmp_path / "run", linear(), 2)
    with pytest.warns(UserWarning, match=said):
        fit(tmp_path / "run", linear(), 2, strict=False)
