"""Checkpoints of arrays on several devices: the same bits on any devices, one array at a time."""

import gc
import os
import subprocess
import sys
import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solstice import checkpoint

pytest.importorskip("safetensors")

SHARDINGS = ["none", "one", "replicated", "rows", "both axes", "four devices"]


@cache
def mesh_of(name: str) -> Mesh:
    devices = np.array(jax.devices())
    if name == "both axes":
        return Mesh(devices.reshape(4, 2), ("data", "model"))
    return Mesh(devices[::-1][:4] if name == "four devices" else devices, ("data",))


def spec_of(name: str, leaf: jax.Array) -> PartitionSpec:
    if name == "replicated" or leaf.ndim == 0 or leaf.shape[0] % 8:
        return PartitionSpec()
    is_wide = name == "both axes" and leaf.ndim > 1 and leaf.shape[1] % 2 == 0
    return PartitionSpec("data", "model") if is_wide else PartitionSpec("data")


def on(name: str, tree: Any) -> Any:
    """The tree with its arrays as a name of `SHARDINGS` says."""

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or name == "none":
            return leaf
        if name == "one":
            return jax.device_put(leaf, jax.devices()[3])
        return jax.device_put(leaf, NamedSharding(mesh_of(name), spec_of(name, leaf)))

    return jax.tree.map(place, tree)


def state(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    key = jax.random.key(seed)
    return {
        "rows": jnp.asarray(rng.normal(size=(8, 6)).astype(np.float32)),
        "half": jnp.asarray(rng.normal(size=16), jnp.bfloat16),
        "small": jnp.asarray(rng.integers(-4, 4, 8), jnp.int8),
        "odd": jnp.asarray(rng.normal(size=(3, 5)).astype(np.float32)),
        "scalar": jnp.asarray(np.float32(seed)),
        "weak": jnp.asarray(0.5 + seed),
        "empty": jnp.zeros((0, 3)),
        "key": key,
        "keys": jax.random.split(key, 8),
        "rbg": jax.random.split(jax.random.key(seed, impl="rbg"), (8, 2)),
        "raw": jax.random.PRNGKey(seed),
        "host": np.arange(4) + seed,
        "count": 10**30 + seed,
    }


def check_from(source: str, folder: Path) -> None:
    tree = on(source, state(0))
    checkpoint.save(folder / source, tree)
    assert checkpoint.diff(tree, state(0)) == {}
    for target in SHARDINGS:
        like, expected = on(target, state(1)), on(target, state(0))
        found = checkpoint.load(folder / source, like=like)
        shapes = jax.tree.map(as_shape, like)
        for one in (found, checkpoint.load(folder / source, like=shapes)):
            assert checkpoint.diff(one, expected) == {}
            for name, leaf in one.items():
                check_placed(leaf, like[name])
        check_that_it_may_be_donated(found, target)


def as_shape(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or not leaf.committed:
        return leaf
    weak = {"weak_type": True} if is_weak(leaf) else {}
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding, **weak)


def is_weak(leaf: Any) -> bool:
    return getattr(leaf, "weak_type", False)  # keys have none


def check_placed(leaf: Any, like: Any) -> None:
    assert type(leaf) is type(like)
    if isinstance(like, jax.Array):
        assert leaf.sharding == like.sharding
        assert leaf.committed == like.committed
        assert is_weak(leaf) == is_weak(like)


def check_that_it_may_be_donated(tree: dict[str, Any], target: str) -> None:
    """No two devices write into one memory."""
    keys = {n: jax.random.key_data(tree[n]) for n in ("key", "keys", "rbg")}
    arrays = {n: leaf for n, leaf in tree.items() if isinstance(leaf, jax.Array)} | keys
    expected = {n: np.array(leaf) * 2 for n, leaf in arrays.items()}
    names = [n for n, x in arrays.items() if x.size]
    doubled = jax.jit(lambda leaves: [2 * x for x in leaves], donate_argnums=0)(
        [arrays[name] for name in names]
    )
    for name, leaf in zip(names, doubled, strict=True):
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, expected[name][shard.index], err_msg=target)


def check_memory(folder: Path) -> None:
    """A save holds one array on the host, not all of them, and keeps none."""
    columns = NamedSharding(mesh_of("rows"), PartitionSpec(None, "data"))
    size, count = 2**20, 8
    tree = [jax.device_put(np.full((8, size // 32), i, np.float32), columns) for i in range(count)]
    checkpoint.save(folder / "warm", tree[:1])
    gc.collect()
    tracemalloc.start()
    finish = checkpoint.begin(folder / "large", tree)
    kept, most = tracemalloc.get_traced_memory()
    finish()
    tracemalloc.stop()
    assert most < 2.5 * size, most
    assert kept < 0.5 * size, kept
    assert checkpoint.diff(folder / "large", tree) == {}


def main(folder: Path) -> None:
    assert jax.device_count() == 8
    for source in SHARDINGS:
        check_from(source, folder)
    check_memory(folder)


@pytest.mark.slow
def test_arrays_on_eight_devices_load_onto_any_others(tmp_path: Path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__, str(tmp_path)],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
