"""What callbacks remember, and what a checkpoint holds: arrays of any dtype, order and layout."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solstice import checkpoint
from solstice._plain import from_plain, to_plain
from solstice.checkpoint import CheckpointError

pytest.importorskip("safetensors")

DTYPES = [
    *"?bBhHiIlLqQefdgFDG",
    *[
        getattr(ml_dtypes, name)
        for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz")
    ],
    *[getattr(ml_dtypes, name) for name in ("int4", "uint4")],
]
LAYOUTS = {
    "C": lambda a: a,
    "Fortran": np.asfortranarray,
    "transposed": lambda a: a.T,
    "strided": lambda a: a[::2],
    "backwards": lambda a: a[::-1, ::-1],
    "one": lambda a: a[1, 1],
    "0-d": lambda a: a[1:2, 1:2].reshape(()),
    "broadcast": lambda a: np.broadcast_to(a[:1, :1], (3, 2)),
    "none": lambda a: a[:0],
    "no columns": lambda a: a[:, 2:2],
    "unaligned": lambda a: shifted(a),
}


def shifted(array):
    """The array in memory that begins at an odd byte."""
    memory = np.zeros(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


arrays = st.builds(
    lambda dtype, order, values, layout: LAYOUTS[layout](
        np.array(values).reshape(3, 2).astype(np.dtype(dtype).newbyteorder(order))
    ),
    st.sampled_from(DTYPES),
    st.sampled_from("<>"),
    st.lists(st.integers(0, 7), min_size=6, max_size=6),
    st.sampled_from([*LAYOUTS]),
)
patient = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # fmt: skip


def assert_same(back, array):
    assert isinstance(back, np.generic) == isinstance(array, np.generic)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)
    assert isinstance(back, np.generic) or back.flags.writeable


@patient
@given(array=arrays)
def test_a_state_has_the_numbers_that_it_had(array):
    assert_same(from_plain(json.loads(json.dumps(to_plain(array, "x")))), array)


@patient
@given(array=arrays)
def test_a_checkpoint_has_the_numbers_that_it_had(tmp_path_factory, array):
    folder = tmp_path_factory.mktemp("any") / "tree"
    checkpoint.save(folder, {"x": array})
    assert_same(checkpoint.load(folder, like={"x": array})["x"], array)
    assert checkpoint.diff(folder, {"x": array}) == {}


def test_a_checkpoint_is_read_in_the_byte_order_of_its_like(tmp_path):
    checkpoint.save(tmp_path / "a", np.array([1, 2], ">i4"))
    back = checkpoint.load(tmp_path / "a", like=np.zeros(2, "<i4"))
    assert back.dtype == np.dtype("<i4")
    np.testing.assert_array_equal(back, [1, 2])


def test_others_read_big_endian_numbers_as_they_were(tmp_path):
    from safetensors.numpy import load_file

    checkpoint.save(tmp_path / "a", {"x": np.array([1.5, -2], ">f8")})
    found = load_file(tmp_path / "a" / "arrays.safetensors")["['x']"]
    np.testing.assert_array_equal(found, [1.5, -2])


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int4"])
def test_small_numbers_of_jax(dtype):
    array = jnp.arange(4).astype(dtype)
    back = from_plain(to_plain(array, "x"))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, np.asarray(array))


PAIRS = np.zeros(2, [("a", "f4"), ("b", "i4")])


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (np.ma.array([1, 2], mask=[0, 1]), r"a masked array: keep `x\.data`"),
        (np.array([[1, 2]]).view(np.matrix), "a matrix: make it an array"),
        (np.array(["2026"], "M8[D]"), r"an array of datetime64\[D\]: make it numbers"),
        (np.datetime64("2026"), r"an array of datetime64\[Y\]"),
        (np.array([3], "m8[s]"), r"an array of timedelta64\[s\]"),
        (PAIRS, r"an array of .*: make it an array for each field, `x\['a'\]`"),
        (PAIRS[0], "an array of .*: make it an array for each field"),
        (PAIRS.view(np.recarray), "an array of .*: make it an array for each field"),
        (np.zeros(2, "V3"), r"an array of \|V3: make it numbers, `x\.view"),
        (np.array(["a"]), "an array of <U1: make it a list"),
        (np.array([b"a"]), r"an array of \|S1: make it a list"),
        (np.array([None]), "an array of object"),
    ],
)
def test_what_is_not_plain_numbers_is_refused_by_name(tmp_path, value, why):
    with pytest.raises(TypeError, match=f"x holds {why}"):
        to_plain({"deep": [value]}, "x")
    with pytest.raises(CheckpointError, match=f"`\\['x'\\]` is {why}"):
        checkpoint.save(tmp_path / "a", {"x": value})
    assert not (tmp_path / "a").exists()


def test_the_advice_for_what_is_refused_is_right():
    masked, pair = np.ma.array([1, 2], mask=[0, 1]), PAIRS
    for value in [
        masked.data,
        np.ma.getmaskarray(masked),
        np.array(np.array([[1, 2]]).view(np.matrix)),
        np.array(["2026"], "M8[D]").astype("int64"),
        np.array(["a"]).tolist(),
        pair["a"],
        np.zeros(2, "V3").view("uint8"),
    ]:
        to_plain(value, "x")


def test_an_array_in_a_file_is_one_in_memory_when_it_comes_back(tmp_path):
    mapped = np.memmap(tmp_path / "m", np.float32, "w+", shape=(2,))
    mapped[:] = [1, 2]
    np.testing.assert_array_equal(from_plain(to_plain(mapped, "x")), [1, 2])
    checkpoint.save(tmp_path / "a", mapped)
    np.testing.assert_array_equal(checkpoint.load(tmp_path / "a", like=np.zeros(2, "f4")), [1, 2])


def test_a_key_in_a_state_is_refused_by_name():
    with pytest.raises(TypeError, match=r"keep `jax\.random\.key_data"):
        to_plain(jax.random.key(0), "x")


@pytest.mark.parametrize("dtype", [np.longdouble, np.clongdouble])
@pytest.mark.parametrize("order", ["<", ">"])
def test_bytes_that_are_no_part_of_a_long_double_make_no_difference(dtype, order):
    """On x86, 6 of its 16 bytes are not used, and have any value."""
    one = np.arange(3).astype(dtype)
    other = one.copy()
    bytes_of = other.view(np.uint8).reshape(-1, 16)
    if np.finfo(dtype).nmant == 63:
        bytes_of[:, 10:] ^= 255
    one, other = (x.astype(np.dtype(dtype).newbyteorder(order)) for x in (one, other))
    assert checkpoint.diff({"x": one}, {"x": other}) == {}
    other[1] += 1
    assert list(checkpoint.diff({"x": one}, {"x": other})) == ["['x']"]
