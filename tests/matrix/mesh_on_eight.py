"""Networks and optimisers of several frameworks have the history of one device on any mesh.

`test_mesh.py` runs these tests in a process with eight devices. They start two with four each.
"""

import functools
import hashlib
import random
from itertools import combinations, product
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peers
import pytest
from flax import nnx
from jax.sharding import Mesh

import solstice
from solstice._engine import _sharding

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(148, 16)).astype(np.float32), RNG.integers(0, 3, 148).astype(np.int32)


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax and Haiku mix dtypes, and the frameworks add a bias of one axis to rows."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


SMALL = 64
"""The elements from which "fsdp" splits here, so that it splits the arrays of small networks."""


@pytest.fixture(autouse=True)
def small_fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sharding, "FSDP_SIZE", SMALL)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        # With a bias, whose gradient is the rounding error of 0, Adam would move it by the rate.
        x = nn.Dense(32, use_bias=False)(x)
        x = nn.tanh(nn.BatchNorm(not train)(x))
        return nn.Dense(3)(nn.Dropout(0.2, deterministic=not train)(x))


class NNX(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.one, self.two = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 3, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.two(self.drop(jnp.tanh(self.one(x))))


def haiku(x: Any, is_training: bool) -> Any:
    x = jnp.tanh(hk.Linear(32)(x))
    x = hk.dropout(hk.next_rng_key(), 0.2, x) if is_training else x
    return hk.Linear(3)(x)


class Equinox(eqx.Module):
    one: eqx.nn.Linear
    two: eqx.nn.Linear
    drop: eqx.nn.Dropout

    def __init__(self, key: Any) -> None:
        first, second = jax.random.split(key)
        self.one, self.two = eqx.nn.Linear(16, 32, key=first), eqx.nn.Linear(32, 3, key=second)
        self.drop = eqx.nn.Dropout(0.2)

    def __call__(self, x: Any, key: Any = None) -> Any:
        return self.two(self.drop(jnp.tanh(self.one(x)), key=key))


NETS = {
    "linen": lambda: Linen(),
    "nnx": lambda: NNX(nnx.Rngs(0)),
    "haiku": lambda: hk.transform(haiku),
    "equinox": lambda: Equinox(jax.random.key(0)),
}
OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(optax.cosine_decay_schedule(1e-2, 20)),
    "clipped adamw": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2)),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=8),
    "lion": lambda: optax.lion(1e-3),
    "lamb": lambda: optax.lamb(1e-2),
}


class Rows(solstice.Callback):
    needs = ("metrics",)
    can_stop = False

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def on_step_end(self, record: solstice.Record) -> None:
        if record.mode == "train":
            self.rows.append(dict(record.metrics))


def train(net: str, optimizer: str, examples: int, micro: int, **options: Any) -> tuple[Any, Any]:
    exp = solstice.ClassificationExperiment(
        NETS[net](), OPTIMIZERS[optimizer](), 3, micro_batches=micro
    )
    rows, data = Rows(), solstice.data.batches((X[:examples], Y[:examples]), 32)
    trainer = solstice.Trainer([rows], **options)
    trained = trainer.fit(exp, data, data, num_epochs=2)
    epochs = [{k: x for k, x in row.items() if k != "span"} for row in trainer.history.rows]
    return trained, [*rows.rows, *epochs]


@functools.cache
def one_device(net: str, optimizer: str, examples: int, micro: int) -> Any:
    return train(net, optimizer, examples, micro)[1]


def sha(tree: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array)):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        digest.update(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
    return digest.hexdigest()


def grid() -> list[Any]:
    """Each network with each optimiser, and each pair of values of any two factors."""
    others = list(product((8, 4, 2), ("fsdp", "replicated"), (128, 148), (1, 4)))
    random.Random(194).shuffle(others)  # a seed with which each pair comes up
    rows = [(*pair, *other) for pair, other in zip(product(NETS, OPTIMIZERS), others, strict=True)]
    values = [dict.fromkeys(column) for column in zip(*rows, strict=True)]
    for one, other in combinations(range(len(values)), 2):
        found = {(row[one], row[other]) for row in rows}
        assert found == {*product(values[one], values[other])}
    return rows


GRID = pytest.mark.parametrize(
    ("net", "optimizer", "mesh", "sharding", "examples", "micro"), grid()
)


@GRID
def test_the_history_is_that_of_one_device(
    net: str, optimizer: str, mesh: int, sharding: str, examples: int, micro: int
):
    trained, rows = train(net, optimizer, examples, micro, mesh=mesh, sharding=sharding)
    check_history(rows, one_device(net, optimizer, examples, micro))
    assert sharding == "replicated" or is_split(trained)
    if mesh == 8:
        again = train(net, optimizer, examples, micro, mesh=mesh, sharding=sharding)
        assert sha(again[0]) == sha(trained)
        assert again[1] == rows


def check_history(rows: list[Any], expected: list[Any]) -> None:
    assert len(rows) == len(expected)
    for row, one in zip(rows, expected, strict=True):
        assert row.keys() == one.keys()
        np.testing.assert_allclose(row["loss"], one["loss"], rtol=1e-6)
        # All others are made of counts, which are exact.
        assert {**row, "loss": 0} == {**one, "loss": 0}


def is_split(trained: Any) -> bool:
    """Whether all large arrays are split, and some are there."""
    large = [x for x in jax.tree.leaves(eqx.filter(trained, eqx.is_array)) if x.size >= 512]
    return bool(large) and not any(x.sharding.is_fully_replicated for x in large)


IN_PROCESSES = f"""
sys.path += {[str(Path(__file__).parent), str(Path(peers.__file__).parent)]}
connect()
import mesh_on_eight
mesh_on_eight.train_all(show)
"""


def train_all(show: Any) -> None:
    """Trains the grid in this process and the others, and shows what comes of it."""
    _sharding.FSDP_SIZE = SMALL
    for row in grid():
        net, optimizer, devices, sharding, examples, micro = row
        options = {"mesh": across_processes(devices), "sharding": sharding}
        for time in ("first", "second") if devices == 8 else ("first",):
            trained, rows = train(net, optimizer, examples, micro, **options)
            whole = solstice.distributed.gather(trained)
            show(f"{time} {row}", {"rows": rows, "sha": sha(whole), "is_split": is_split(trained)})


def across_processes(devices: int) -> Mesh:
    """The same number of devices of each process."""
    share = devices // jax.process_count()
    of = [[x for x in jax.devices() if x.process_index == p] for p in range(jax.process_count())]
    return Mesh(np.array([one[:share] for one in of]).ravel(), ("data",))


@pytest.fixture(scope="module")
def processes() -> list[peers.Ended]:
    """Two processes, which have trained the whole grid."""
    flags = "--xla_force_host_platform_device_count=4"
    both = peers.run(IN_PROCESSES, 2, timeout=1200, XLA_FLAGS=flags)
    for ended in both:
        assert ended.code == 0, ended.output[-4000:]
    return both


@GRID
def test_the_history_of_two_processes_is_that_of_one_device(
    processes: list[peers.Ended],
    net: str,
    optimizer: str,
    mesh: int,
    sharding: str,
    examples: int,
    micro: int,
):
    name = str((net, optimizer, mesh, sharding, examples, micro))
    one, other = (ended.shown[f"first {name}"] for ended in processes)
    assert one == other
    check_history(one["rows"], one_device(net, optimizer, examples, micro))
    assert sharding == "replicated" or one["is_split"]
    if mesh == 8:
        assert [ended.shown[f"second {name}"] for ended in processes] == [one, one]
