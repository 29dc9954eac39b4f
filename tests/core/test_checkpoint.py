"""Checkpoints: the same bits, or an error with a name; never half a one, never wrong data."""

import collections
import json
import os
import random
import shutil
import subprocess
import sys
import tracemalloc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import solstice
from solstice import _tree, checkpoint
from solstice.checkpoint import CheckpointError
from solstice.testing import Sgd

pytest.importorskip("safetensors")


class Run(eqx.Module):
    """What an Experiment may hold."""

    weights: dict
    key: jax.Array
    legacy: jax.Array
    step: int
    rate: float
    best: np.float32
    counts: np.ndarray
    nothing: None
    activation: Any
    width: int = eqx.field(static=True)


def run(seed=0, activation=jnp.tanh, width=3, impl=None):
    rng = np.random.default_rng(seed)
    return Run(
        weights={
            "linear/~/w": jnp.asarray(rng.normal(size=(3, 4)).astype(np.float32)),
            "half": (jnp.asarray(rng.normal(size=5), jnp.bfloat16), jnp.zeros((0, 2))),
            "scalar": jnp.asarray(seed),
        },
        key=jax.random.key(seed, impl=impl),
        legacy=jax.random.PRNGKey(seed),
        step=10**30 + seed,
        rate=0.1 + seed,
        best=np.float32(-0.0),
        counts=rng.integers(0, 9, 4),
        nothing=None,
        activation=activation,
        width=width,
    )


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert type(a) is type(b)
    assert checkpoint.diff(one, other) == {}


# Round trips


def test_everything_that_a_run_holds_comes_back(tmp_path):
    tree = run()
    where = checkpoint.save(tmp_path / "deep" / "run", tree, note={"epoch": 3})
    same(checkpoint.load(where, like=run(seed=1)), tree)
    same(checkpoint.load(str(where), like=tree), tree)


NUMBERS = [np.bool_, np.int8, np.uint16, np.int32, np.float16, np.float32, np.complex64]
SMALL = [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4]
arrays = st.one_of(
    hnp.arrays(
        st.sampled_from(NUMBERS), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    ),
    st.builds(
        lambda dtype, values: np.asarray(values, np.float32).astype(dtype),
        st.sampled_from(SMALL),
        st.lists(st.floats(-7, 7, width=32), max_size=4),
    ),
)
leaves = st.one_of(
    arrays,
    arrays.map(jnp.asarray),
    arrays.map(np.asfortranarray),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.complex_numbers(),
    st.none(),
    st.integers(0, 9).map(jax.random.key),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=4), inner, max_size=3),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=trees)
def test_any_tree_comes_back_bit_for_bit(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("any") / "tree"
    checkpoint.save(folder, tree)
    same(checkpoint.load(folder, like=tree), tree)


def test_others_can_read_the_arrays(tmp_path):
    from safetensors.numpy import load_file

    checkpoint.save(tmp_path / "run", run())
    found = load_file(tmp_path / "run" / "arrays.safetensors")
    np.testing.assert_array_equal(found[".weights['linear/~/w']"], run().weights["linear/~/w"])
    manifest = (tmp_path / "run" / "manifest.json").read_text().split("\n", 1)[1]
    assert json.loads(manifest)["leaves"][".key"]["impl"] == "threefry2x32"


def test_an_experiment_goes_on_as_it_would_have(tmp_path):
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    data = solstice.data.batches((x, (x[:, 0] > 0).astype(int)), 8, shuffle=True)
    net = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
    new = solstice.ClassificationExperiment(
        net, solstice.compat.ema(Sgd(0.1), 0.9), 2, sample_input=x, class_weights=[1, 2]
    )
    trained = new.train(data, callbacks=[])
    checkpoint.save(tmp_path / "run", trained)
    loaded = checkpoint.load(tmp_path / "run", like=new)
    same(loaded, trained)
    same(loaded.train(data, callbacks=[]), trained.train(data, callbacks=[]))
    other = solstice.ClassificationExperiment(
        net, solstice.compat.ema(Sgd(0.1), 0.5), 2, sample_input=x, class_weights=[1, 2]
    )
    with pytest.raises(CheckpointError, match=r"`\.learner\.optimizer` was .*decay=0\.9"):
        checkpoint.load(tmp_path / "run", like=other)


def test_what_is_loaded_may_be_donated_and_is_where_its_like_is(tmp_path):
    tree = {"w": jnp.arange(16.0)}
    checkpoint.save(tmp_path / "run", tree)
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("data",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    placed = checkpoint.load(tmp_path / "run", like=jax.device_put(tree, spread))
    assert placed["w"].sharding == spread
    shape = jax.ShapeDtypeStruct((16,), jnp.float32, sharding=spread)
    assert checkpoint.load(tmp_path / "run", like={"w": shape})["w"].sharding == spread
    loaded = checkpoint.load(tmp_path / "run", like=tree)["w"]
    double = jax.jit(lambda w: w * 2, donate_argnums=0)
    np.testing.assert_array_equal(double(loaded), 2 * np.arange(16.0))
    assert loaded.is_deleted()


# Another tree


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (run(activation=jax.nn.relu), r"`\.activation` was .*tanh.* and is .*relu"),
        (run(width=4), r"`\.width` was 3 .* and is 4"),
        (run(impl="rbg"), r"`\.key` was a key of threefry2x32\[\].* and is a key of rbg"),
        (eqx.tree_at(lambda r: r.step, run(), 1.0), r"`\.step` was a Python int"),
        (eqx.tree_at(lambda r: r.legacy, run(), jnp.zeros(3)), r"`\.legacy` was a JAX uint32\[2\]"),
        (
            eqx.tree_at(lambda r: r.counts, run(), jnp.zeros(4)),
            r"`\.counts` was a NumPy int64\[4\]",
        ),
        (eqx.tree_at(lambda r: r.weights, run(), {"w": jnp.zeros(1)}), r"is of another tree"),
        ({"a": jnp.zeros(2)}, r"`\.` was .*Run when it was saved, and is builtins\.dict"),
    ],
)
def test_another_tree_is_named_by_its_path(tmp_path, like, message):
    checkpoint.save(tmp_path / "run", run())
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path / "run", like=like)


def test_a_class_of_another_name_loads_as_the_error_says(tmp_path):
    class Renamed(type(run())):
        pass

    like = run()
    object.__setattr__(like, "__class__", Renamed)
    checkpoint.save(tmp_path / "run", run())
    with pytest.raises(CheckpointError, match=r"`\.` was .*Run .*write `only='\*'`"):
        checkpoint.load(tmp_path / "run", like=like)
    found = checkpoint.load(tmp_path / "run", like=like, only="*")
    assert checkpoint.diff(found, run()) == {}


def test_leaves_of_one_shape_do_not_swap(tmp_path):
    checkpoint.save(tmp_path / "run", {"a": jnp.zeros(3), "b": jnp.ones(3)})
    with pytest.raises(CheckpointError, match=r"the checkpoint has nothing at `\['c'\]`"):
        checkpoint.load(tmp_path / "run", like={"a": jnp.zeros(3), "c": jnp.zeros(3)})
    found = checkpoint.load(
        tmp_path / "run", like={"a": jnp.zeros(3), "c": jnp.zeros(3)}, rename={"['b']": "['c']"}
    )
    np.testing.assert_array_equal(found["c"], np.ones(3))


def test_a_part_is_loaded_into_a_tree_of_another_kind(tmp_path):
    checkpoint.save(tmp_path / "run", {"net": {"w": jnp.ones(3)}, "rest": jnp.ones(2)})
    like = {"body": {"w": jnp.zeros(3)}, "head": jnp.zeros(5), "name": "mine"}
    options = {"like": like, "rename": {"['net']": "['body']"}}
    found = checkpoint.load(tmp_path / "run", only="*body*", **options)
    np.testing.assert_array_equal(found["body"]["w"], np.ones(3))
    np.testing.assert_array_equal(found["head"], np.zeros(5))
    with pytest.raises(CheckpointError, match="matches no path"):
        checkpoint.load(tmp_path / "run", only="*nose*", **options)
    with pytest.raises(CheckpointError, match=r"has nothing at `\['head'\]`"):
        checkpoint.load(tmp_path / "run", only="*head*", **options)


def test_what_is_no_number_cannot_be_saved(tmp_path):
    for leaf, message in [
        (np.array(["a"]), r"`\['x'\]` is an array of <U1"),
        (jax.ShapeDtypeStruct((2,), jnp.float32), "has a shape and no values"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            checkpoint.save(tmp_path / "run", {"x": leaf})
    assert list(tmp_path.iterdir()) == []


# Differences


def test_differences_are_told_by_path():
    one = {"a": jnp.arange(6.0).reshape(2, 3), "b": 3, "c": jnp.zeros(2), "z": np.float32(0.0)}
    other = {"a": one["a"].at[1, 2].set(9), "b": 4, "d": jnp.zeros(2), "z": np.float32(-0.0)}
    assert checkpoint.diff(one, other) == {
        "['a']": "1 of 6 numbers: 5.0 and 9.0 at [1, 2]",
        "['b']": "3 and 4",
        "['c']": "only in the first",
        "['d']": "only in the second",
        "['z']": "1 of 1 numbers: 0.0 and -0.0",
    }
    nan = {"a": np.float32([np.nan])}
    assert checkpoint.diff(nan, nan) == {}
    assert checkpoint.diff({"a": 1}, {"a": 1.0}) == {"['a']": "int uint8 and float float64"}


# Damage


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def outcome(folder, like):
    try:
        return checkpoint.load(folder, like=like)
    except CheckpointError as error:
        return error


def mutated(data, rng):
    """A file with a bit, a byte or a run changed, cut, grown, doubled or with parts exchanged."""
    data, kind = bytearray(data), rng.randrange(7)
    at, other = rng.randrange(len(data)), rng.randrange(len(data))
    first, last = min(at, other), max(at, other) + 1
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at] = rng.randrange(256)
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        del data[first:last]
    elif kind == 4:
        data[at:at] = rng.randbytes(rng.randrange(1, 20))
    elif kind == 5:
        data[first:last] = rng.randbytes(last - first)
    else:
        data[at], data[other] = data[other], data[at]
    return bytes(data)


@pytest.mark.slow
def test_ten_thousand_damages_are_told_or_harmless(tmp_path):
    tree, like = run(), run(seed=1)
    folder = checkpoint.save(tmp_path / "run", tree)
    whole = files(folder)
    header = 8 + int.from_bytes(whole["arrays.safetensors"][:8], "little")
    rng, told = random.Random(0), {"manifest.json": 0, "header": 0, "tensors": 0}
    for number in range(10_000):
        part = ["manifest.json", "header", "tensors"][number % 3]
        name = "manifest.json" if part == "manifest.json" else "arrays.safetensors"
        data = whole[name]
        if part == "manifest.json":
            new = mutated(data, rng)
        elif part == "header":
            new = mutated(data[:header], rng) + data[header:]
        else:
            new = data[:header] + mutated(data[header:], rng)
        (folder / name).write_bytes(new)
        found = outcome(folder, like)
        (folder / name).write_bytes(data)
        if isinstance(found, CheckpointError):
            told[part] += 1
        else:
            same(found, tree)
    assert min(told.values()) > 3000, told
    same(checkpoint.load(folder, like=like), tree)


@pytest.mark.parametrize("name", ["arrays.safetensors", "manifest.json"])
def test_a_file_that_is_gone_or_a_folder_is_told(tmp_path, name):
    folder = checkpoint.save(tmp_path / "run", run())
    (folder / name).unlink()
    with pytest.raises(CheckpointError):
        checkpoint.load(folder, like=run())
    (folder / name).mkdir()
    with pytest.raises(CheckpointError):
        checkpoint.load(folder, like=run())


def test_two_checkpoints_do_not_mix(tmp_path):
    one = checkpoint.save(tmp_path / "one", run())
    other = checkpoint.save(tmp_path / "other", run(seed=1))
    shutil.copy(other / "arrays.safetensors", one / "arrays.safetensors")
    with pytest.raises(CheckpointError, match="is damaged at"):
        checkpoint.load(one, like=run())


def test_no_checkpoint_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        checkpoint.load(tmp_path / "none", like=run())


def test_a_newer_version_is_told(tmp_path):
    from solstice.checkpoint import _files

    folder = checkpoint.save(tmp_path / "run", run())
    manifest = _files.read_manifest(folder / "manifest.json").text
    (folder / "manifest.json").write_text(_files.seal({**manifest, "version": 2}))
    with pytest.raises(CheckpointError, match=r"Upgrade solstice-core"):
        checkpoint.load(folder, like=run())


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("words")
    with pytest.raises(CheckpointError, match="is there and is not a checkpoint"):
        checkpoint.save(tmp_path / "thesis", run())
    assert (tmp_path / "thesis" / "chapter").read_text() == "words"


def test_a_disk_that_refuses_leaves_the_last_one(tmp_path):
    folder = checkpoint.save(tmp_path / "run", {"a": jnp.zeros(3)})
    code = (
        "import resource, signal, jax.numpy as jnp; from solstice import checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        f"checkpoint.save({str(folder)!r}, {{'a': jnp.zeros(100_000)}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "CheckpointError: the checkpoint" in done.stderr
    same(checkpoint.load(folder, like={"a": jnp.ones(3)}), {"a": jnp.zeros(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# Death

DIES = """
import os, sys
import jax.numpy as jnp
from solstice import checkpoint
folder, last = sys.argv[1], int(sys.argv[2])
count = 0

def hook(event, arguments):
    global count
    if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
        if any(os.path.dirname(folder) in str(argument) for argument in arguments):
            count += 1
            if count == last:
                os._exit(9)

import safetensors.numpy
sys.addaudithook(hook)
checkpoint.save(folder, {"a": jnp.ones(3)})
print(count)
"""


@pytest.mark.slow
def test_dying_at_any_moment_of_a_save_leaves_the_old_or_the_new(tmp_path):
    """At each of the calls by which a save changes the disk, in a process of its own."""
    old, new = {"a": jnp.zeros(3)}, {"a": jnp.ones(3)}
    outcomes = []
    for last in range(1, 100):
        parent = tmp_path / str(last)
        folder = checkpoint.save(parent / "run", old)
        done = subprocess.run(
            [sys.executable, "-c", DIES, str(folder), str(last)],
            capture_output=True, text=True, check=False,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        found = checkpoint.load(folder, like=old)
        outcomes.append(bool(found["a"][0] == 1))
        same(found, new if outcomes[-1] else old)
        checkpoint.sweep(parent)
        assert [path.name for path in parent.iterdir()] == ["run"]
        same(checkpoint.load(folder, like=old), found)
        if done.returncode == 0:
            break
        assert done.returncode == 9, done.stderr
    assert outcomes == sorted(outcomes)  # the old one up to a moment, the new one from then on
    assert {False, True} == set(outcomes)
    assert len(outcomes) > 6


@pytest.mark.parametrize("modules", [("__main__", "train"), ("a.train", "__main__")])
def test_a_class_of_a_script_is_the_one_that_is_imported_from_it(tmp_path, modules):
    class Weights(eqx.Module):
        w: jax.Array

    saved, loaded = (
        type("Weights", (Weights,), {"__module__": module, "__qualname__": "Weights"})
        for module in modules
    )
    checkpoint.save(tmp_path / "a", saved(jnp.ones(2)))
    found = checkpoint.load(tmp_path / "a", like=loaded(jnp.zeros(2)))
    assert found.w.tolist() == [1, 1]
    other = type("Other", (Weights,), {"__module__": modules[1], "__qualname__": "Other"})
    with pytest.raises(CheckpointError, match="is of another tree"):
        checkpoint.load(tmp_path / "a", like=other(jnp.zeros(2)))


# Leaves with one path


class Same:
    """A node that names all its children alike."""

    def __init__(self, *children):
        self.children = children


jax.tree_util.register_pytree_with_keys(
    Same,
    lambda node: ([(jax.tree_util.GetAttrKey("part"), c) for c in node.children], None),
    lambda _, children: Same(*children),
)


class Word:
    """A key of a dict whose `repr` is that of all others."""

    def __init__(self, order):
        self.order = order

    def __lt__(self, other):
        return self.order < other.order

    def __eq__(self, other):
        return self.order == other.order

    def __hash__(self):
        return hash(self.order)

    def __repr__(self):
        return "Word()"


ALIKE = {
    "leaves": lambda a, b, c: Same(a, b, c),
    "containers": lambda a, b, c: Same({"w": a}, {"w": b, "v": c}),
    "a leaf and a function": lambda a, b, c: Same(a, jnp.tanh, {"w": b}, {"w": c}),
    "keys of a dict": lambda a, b, c: {Word(1): a, Word(2): b, Word(3): [c]},
    "a number and its text": lambda a, b, c: collections.OrderedDict({1: a, "1": b, "1#2": c}),
    "a slash": lambda a, b, c: {"a/b": a, "a": {"b": b}, "['a/b']": c},
}


@pytest.mark.parametrize("make", ALIKE.values(), ids=ALIKE)
def test_no_leaf_stands_in_for_another(tmp_path, make):
    tree = make(*(np.full(2, value) for value in (1.0, 7.0, 9.0)))
    like = make(*(np.zeros(2) for _ in range(3)))
    checkpoint.save(tmp_path / "a", tree)
    for loaded in (
        checkpoint.load(tmp_path / "a", like=like),
        checkpoint.load(tmp_path / "a", like=like, only="*"),
    ):
        assert checkpoint.diff(loaded, tree) == {}
        found = [leaf[0] for leaf in jax.tree.leaves(loaded) if isinstance(leaf, np.ndarray)]
        assert sorted(found) == [1.0, 7.0, 9.0]
    for index in range(3):
        changed = make(*(np.full(2, v + (i == index)) for i, v in enumerate((1.0, 7.0, 9.0))))
        assert len(checkpoint.diff(tmp_path / "a", changed)) == 1


@pytest.mark.parametrize("make", ALIKE.values(), ids=ALIKE)
def test_paths_with_slashes_are_as_many_as_leaves_in_their_order(make):
    tree = make(1.0, 7.0, 9.0)
    assert [*_tree.leaves_by_slashes(tree).values()] == jax.tree.leaves(tree)
    assert [leaf for _, leaf in _tree.leaves_by_path(tree)] == jax.tree.leaves(tree)
    assert len(dict(_tree.leaves_by_path(tree))) == len(jax.tree.leaves(tree))


def test_leaves_with_one_path_in_one_tree_alone_are_told(tmp_path):
    checkpoint.save(tmp_path / "a", Same(np.ones(2), np.ones(2)))
    for only in (None, "*"):
        with pytest.raises(CheckpointError, match=r"\.part"):
            checkpoint.load(tmp_path / "a", like=Same(np.ones(2)), only=only)


def test_static_children_with_one_path_are_compared_too(tmp_path):
    checkpoint.save(tmp_path / "a", Same(jnp.tanh, jnp.sin))
    with pytest.raises(CheckpointError, match=r"`\.part` was .*tanh .* and is .*sin"):
        checkpoint.load(tmp_path / "a", like=Same(jnp.sin, jnp.sin))


def test_renaming_two_leaves_to_one_is_refused(tmp_path):
    checkpoint.save(tmp_path / "a", {"a": np.zeros(2), "b": np.ones(2)})
    with pytest.raises(CheckpointError, match=r"gives two saved paths the name `\['b'\]`"):
        checkpoint.load(tmp_path / "a", like={"b": np.ones(2)}, rename={"['a']": "['b']"}, only="*")
    swapped = checkpoint.load(
        tmp_path / "a",
        like={"a": np.ones(2), "b": np.ones(2)},
        rename={"['a']": "['b']", "['b']": "['a']"},
    )
    np.testing.assert_array_equal(swapped["a"], np.ones(2))


def test_a_frozen_part_is_the_one_that_was_named():
    params = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}, "c": jnp.ones(2)}
    optimizer = solstice.compat.freeze(Sgd(1.0), ["c"])
    state = optimizer.init(params)
    new, _ = optimizer.step(jax.tree.map(jnp.ones_like, params), state, params)
    assert [float(leaf[0]) for leaf in jax.tree.leaves(new)] == [0.0, 0.0, 1.0]


def test_a_check_of_a_path_says_what_saving_would(tmp_path):
    for path in (tmp_path / "new" / "deep", tmp_path / "saved"):
        checkpoint.check_writable(path)
        assert not path.exists()  # a check writes nothing
        checkpoint.save(path, run())
        checkpoint.check_writable(path)  # a checkpoint is replaced
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    for path, words in [("notes", "is not a checkpoint"), ("file/a", "Mine writes into the")]:
        for saves in (checkpoint.save, checkpoint.check_writable):
            with pytest.raises(CheckpointError) as caught:
                saves(tmp_path / path, *([run()] if saves is checkpoint.save else ["Mine"]))
        assert words in str(caught.value)


def test_an_experiment_without_values_is_refused_with_the_way_to_give_them(tmp_path):
    def make():
        net = eqx.nn.Linear(2, 2, key=jax.random.key(0))
        return solstice.ClassificationExperiment(net, Sgd(), num_classes=2)

    batch = np.zeros((4, 2), np.float32), np.zeros(4, int)
    checkpoint.save(tmp_path / "a", make().setup(batch))
    with pytest.raises(CheckpointError, match=r"no values yet: `like=exp\.setup\(batch\)`"):
        checkpoint.load(tmp_path / "a", like=make())
    checkpoint.load(tmp_path / "a", like=make().setup(batch))


def many(count=10):
    return {f"w{index}": jnp.full(2**18, index, jnp.float32) for index in range(count)}


def test_what_was_begun_may_be_donated_before_it_is_finished(tmp_path):
    tree = {**many(), **vars(run(3))}
    like = jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, tree)
    finish = checkpoint.begin(tmp_path / "a", tree, note={"step": 1})
    assert not checkpoint.exists(tmp_path / "a")
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            leaf.delete()
    assert finish() == tmp_path / "a"
    same(checkpoint.load(tmp_path / "a", like=like), like)
    assert checkpoint.manifest(tmp_path / "a")["note"] == {"step": 1}


def test_what_was_begun_and_not_finished_is_swept(tmp_path):
    checkpoint.save(tmp_path / "a", many(1))
    checkpoint.begin(tmp_path / "a", many(2))
    same(checkpoint.load(tmp_path / "a", like=many(1)), many(1))
    assert len(checkpoint.sweep(tmp_path)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_saving_has_no_copy_of_all_arrays_in_memory(tmp_path):
    tree = many()
    checkpoint.save(tmp_path / "a", tree)  # imports
    tracemalloc.start()
    checkpoint.save(tmp_path / "a", tree)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * tree["w0"].nbytes


def test_the_file_is_one_that_safetensors_reads_in_place(tmp_path):
    tree = {
        name: jnp.arange(5).astype(name)
        for name in ("bool", "uint8", "float16", "bfloat16", "int32", "float32", "int16")
    } | {"empty": jnp.zeros((0, 3)), "scalar": jnp.asarray(2.0), "é": jnp.ones(1)}
    checkpoint.save(tmp_path / "a", tree)
    path = tmp_path / "a" / "arrays.safetensors"
    read = safetensors_numpy().load_file(path)
    for name, array in tree.items():
        np.testing.assert_array_equal(read[f"['{name}']"], np.asarray(array))
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + size])
    assert size % 8 == 0
    for name, array in tree.items():
        assert entries[f"['{name}']"]["data_offsets"][0] % array.dtype.itemsize == 0


def safetensors_numpy():
    import safetensors.numpy

    return safetensors.numpy


def test_a_deleted_array_is_named_and_nothing_is_written(tmp_path):
    tree = many(2)
    tree["w1"].delete()
    with pytest.raises(ValueError, match=r"array `\['w1'\]` has been deleted"):
        checkpoint.save(tmp_path / "a", tree)
    assert not any(tmp_path.iterdir())
