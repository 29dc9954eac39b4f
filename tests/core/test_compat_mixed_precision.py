"""A model that computes in another dtype than its params are kept in."""

import re
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equinox_nets import Stateful

from solstice.compat import EquinoxModel, as_model, mixed_precision
from solstice.testing import ModelConformance


class Bfloat16:
    """A policy of the user's own, in the form of a `jmp.Policy`."""

    def cast_to_param(self, x):
        return cast(x, jnp.float32)

    def cast_to_compute(self, x):
        return cast(x, jnp.bfloat16)

    def cast_to_output(self, x):
        return cast(x, jnp.float32)


def cast(tree, dtype):
    def one(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, tree)


class Whole(Bfloat16):
    """A policy that changes nothing."""

    def cast_to_compute(self, x):
        return x

    cast_to_param = cast_to_output = cast_to_compute


class TestMixedPrecision(ModelConformance):
    def build(self, *, hidden, classes, batch_norm, dropout):
        make = eqx.nn.make_with_state(Stateful)
        factory = EquinoxModel(partial(make, hidden, classes, batch_norm, dropout))
        return mixed_precision(factory, Whole())


@jax.tree_util.register_static
class Recording:
    """A model of one weight, whose state counts in float32, and which says what it is given."""

    def __init__(self):
        self.dtypes = []

    def init(self, key, x, /):
        return {"w": jnp.ones((), jnp.float32)}, {"mean": jnp.zeros((), jnp.float32)}

    def forward(self, params, state, x, /, *, train, key=None):
        self.dtypes.append((params["w"].dtype, x["a"].dtype, x["ids"].dtype))
        outputs = params["w"] * x["a"]
        return outputs, {"mean": jnp.mean(outputs)} if train else state


def test_a_model_computes_in_one_dtype_and_is_kept_in_another():
    inner, policy = Recording(), Bfloat16()
    model = mixed_precision(inner, policy)
    assert as_model(model) is model
    assert model == mixed_precision(inner, policy)  # so that nothing is compiled twice
    x = {"a": jnp.ones((2, 3)), "ids": jnp.ones((2,), jnp.int32)}
    params, state = model.init(jax.random.key(0), x)
    outputs, new = model.forward(params, state, x, train=True, key=jax.random.key(0))
    assert inner.dtypes == [(jnp.bfloat16, jnp.bfloat16, jnp.int32)]
    assert params["w"].dtype == outputs.dtype == new["mean"].dtype == jnp.float32


HALF = jnp.bfloat16 if jax.default_backend() == "tpu" else jnp.float16


@pytest.mark.parametrize(
    ("text", "dtypes"),  # of params, computation and output, as jmp.get_policy has them
    [
        ("params=float32,compute=bfloat16,output=float32", ("float32", "bfloat16", "float32")),
        ("params=float32,compute=bfloat16", ("float32", "bfloat16", "bfloat16")),
        ("p=f16", ("float16", "float16", "float16")),
        ("c=bf16", ("float32", "bfloat16", "bfloat16")),
        ("o=f16", ("float32", "float32", "float16")),
        ("o=full,p=bf16", ("bfloat16", "bfloat16", "float32")),
        (" p = f32 , c = half ", ("float32", HALF, HALF)),
        ("half", (HALF, HALF, HALF)),
        ("full", ("float32", "float32", "float32")),
        ("bfloat16", ("bfloat16", "bfloat16", "bfloat16")),
    ],
)
def test_a_text_is_a_policy(text, dtypes):
    inner = Recording()
    model = mixed_precision(inner, text)
    x = {"a": jnp.ones((2, 3)), "ids": jnp.ones((2,), jnp.int32), "n": 3}
    params, state = model.init(jax.random.key(0), x)
    outputs, _ = model.forward(params, state, x, train=False)
    assert (params["w"].dtype, inner.dtypes[0][0], outputs.dtype) == dtypes
    assert inner.dtypes == [(dtypes[1], dtypes[1], jnp.int32)]
    assert model == mixed_precision(inner, text)


def test_a_text_casts_floating_point_arrays_alone():
    class Given(Recording):
        def forward(self, params, state, x, /, *, train, key=None):
            return x, state

    x = {
        "numpy": np.ones(2, np.float64),
        "scalar": np.float32(1),
        "complex": np.ones(2, np.complex64),
        "key": jax.random.key(0),
        "truth": np.ones(2, bool),
        "number": 1.5,
    }
    found, _ = mixed_precision(Given(), "p=f32,c=bf16").forward({}, {}, x, train=False)
    assert found["numpy"].dtype == found["scalar"].dtype == jnp.bfloat16
    rest = ("complex", "key", "truth")
    assert [found[name].dtype for name in rest] == [x[name].dtype for name in rest]
    assert found["number"] == 1.5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("param=float32", r"'param=float32' has the field 'param'"),
        ("params=float32,bfloat16", r"has the field 'bfloat16'"),
        ("compute=bfloat16,c=float32", r"has the field 'compute' twice"),
        ("p=f32,compute=int8", r"gives 'compute' the dtype 'int8', and it must be bfloat16"),
        ("p=f32=f16", r"gives 'params' the dtype 'f32=f16'"),
        ("fp16", r"'fp16' gives all fields the dtype 'fp16'"),
        ("", r"gives all fields the dtype ''"),
    ],
)
def test_a_text_that_is_not_a_policy_is_refused(text, problem):
    with pytest.raises(ValueError, match=problem) as refused:
        mixed_precision(Recording(), text)
    mixed_precision(Recording(), re.search(r'Write "(.*)"$', str(refused.value))[1])


@pytest.mark.parametrize("given", [jnp.bfloat16, None, Bfloat16, b"half"])
def test_other_things_than_policies_are_refused(given):
    with pytest.raises(
        TypeError, match=r'cast_to_compute.*Write `mixed_precision\(model, "params='
    ):
        mixed_precision(Recording(), given)
