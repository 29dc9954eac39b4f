"""`nox -s bench_mesh`: a Trainer on a mesh of 8 devices of a CPU, beside sharded loops by hand.

It writes docs/benchmarks/mesh.json, and `nox -s bench -- --page` the page.
The rounds are interleaved, and each figure is the shortest of all rounds, because other programs on
the machine only add time. The time of the Trainer is that of a whole `fit` of one epoch.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
import optax
import report
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from results import OnMesh

import solstice

BLOCK, BATCH, NUM_BATCHES = 32, 256, 64
ROUNDS = 25
TX = optax.adam(1e-3)
MESH = Mesh(np.array(jax.devices()), ("data",))
WHOLE, ROWS, BLOCKS = (
    NamedSharding(MESH, PartitionSpec(*spec)) for spec in ((), ("data",), (None, "data"))
)


class Net(solstice.Experiment):
    """An MLP 64-128-10."""

    params: Any
    opt_state: Any

    def train_step(self, batch: Any) -> Any:
        (params, opt_state), loss = step((self.params, self.opt_state), batch)
        return Net(params, opt_state), {"loss": loss}

    def eval_step(self, batch: Any) -> Any:
        return self, {"loss": loss_of(self.params, *batch)}


def loss_of(params: Any, x: Any, y: Any) -> Any:
    (w, b), (v, c) = params
    logits = jax.nn.relu(x @ w + b) @ v + c
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def step(state: Any, batch: Any) -> Any:
    params, opt_state = state
    loss, grads = jax.value_and_grad(loss_of)(params, *batch)
    updates, opt_state = TX.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss


def initial() -> Any:
    keys, sizes = jax.random.split(jax.random.key(0)), [64, 128, 10]
    params = [
        (jax.random.normal(key, (a, b)) / a**0.5, jnp.zeros(b))
        for key, a, b in zip(keys, sizes, sizes[1:], strict=False)
    ]
    return params, TX.init(params)


def split(leaf: Any) -> NamedSharding:
    """Like "fsdp", for these small arrays."""
    axes = [axis for axis, size in enumerate(leaf.shape) if size % 8 == 0 and leaf.size >= 1024]
    return NamedSharding(MESH, PartitionSpec(*[None] * axes[0], "data") if axes else WHOLE.spec)


def contenders(sharding: str, batches: list[Any]) -> dict[str, Callable[[], Any]]:
    """Functions that train one epoch and return arrays to wait for."""
    start = initial()
    there = jax.tree.map(split if sharding == "split" else lambda _: WHOLE, start)
    out = (there, WHOLE)
    one_step = jax.jit(step, donate_argnums=0, out_shardings=out)
    scan = jax.jit(
        lambda state, stacked: jax.lax.scan(step, state, stacked), donate_argnums=0,
        out_shardings=out,
    )  # fmt: skip
    placed = jax.device_put(start, there)

    def by_step() -> Any:
        state = jax.tree.map(jnp.copy, placed)
        for batch in batches:
            state, _ = one_step(state, jax.device_put(batch, ROWS))
        return state

    def by_scan() -> Any:
        state = jax.tree.map(jnp.copy, placed)
        for index in range(0, len(batches), BLOCK):
            stacked = tuple(map(np.stack, zip(*batches[index : index + BLOCK], strict=True)))
            state, _ = scan(state, jax.device_put(stacked, BLOCKS))
        return state

    rule = "replicated" if sharding == "replicated" else lambda path, leaf: split(leaf).spec
    trainer = solstice.Trainer(mesh="all", sharding=rule, steps_per_call=BLOCK)
    experiment = Net(*placed)

    def by_trainer() -> Any:
        return trainer.fit(experiment, batches).params

    return {"step": by_step, "scan": by_scan, "Trainer": by_trainer}


def main(rounds: int) -> None:
    rng = np.random.default_rng(0)
    batches = [
        (rng.normal(size=(BATCH, 64)).astype(np.float32), rng.integers(0, 10, BATCH, np.int32))
        for _ in range(NUM_BATCHES)
    ]
    ms = {name: shortest(contenders(name, batches), rounds) for name in ("replicated", "split")}
    found = OnMesh(ms, rounds)
    print(report.mesh_table(found))
    found.save(Path(__file__).parents[2] / "docs/benchmarks")


def shortest(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The shortest milliseconds per step of each function."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(rounds + 3):
        for name, function in functions.items():
            began = time.perf_counter()
            jax.block_until_ready(function())
            if index >= 3:
                times[name].append((time.perf_counter() - began) / NUM_BATCHES * 1000)
    return {name: min(each) for name, each in times.items()}


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
