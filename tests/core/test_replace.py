"""`solstice.replace`: a copy of a module with some fields changed."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice

# Equinox warns of such fields for their gradients, which play no part here.
pytestmark = pytest.mark.filterwarnings(r"ignore:Using `field\(init=False\)`:UserWarning")


class Net(eqx.Module):
    """Has each kind of field that `dataclasses.replace` fails on."""

    weight: jax.Array
    width: int = eqx.field(static=True)
    scale: jax.Array = eqx.field(converter=jnp.asarray)
    doubled: jax.Array = eqx.field(init=False)

    def __init__(self, seed):
        self.weight = jnp.full((2,), float(seed))
        self.width = 2
        self.scale = 1.5
        self.doubled = self.weight * 2


class Checked(eqx.Module):
    low: float
    high: float

    def __check_init__(self):
        if self.low > self.high:
            raise ValueError("low is above high")


class CheckedTwice(Checked):
    step: float = 1.0

    def __check_init__(self):
        if self.step <= 0:
            raise ValueError("step must be above 0")


def test_it_works_where_dataclasses_replace_does_not():
    net = Net(1)
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(net, weight=jnp.zeros(2))
    np.testing.assert_array_equal(solstice.replace(net, weight=jnp.zeros(2)).weight, 0)


@settings(max_examples=30, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "weight": st.floats(-9, 9, width=32),
            "width": st.integers(),
            "scale": st.floats(-9, 9, width=32),
            "doubled": st.floats(-9, 9, width=32),
        },
    )
)
def test_exactly_the_named_fields_change(changes):
    net = Net(3)
    new = solstice.replace(net, **changes)
    assert type(new) is Net
    for field in dataclasses.fields(Net):
        value = getattr(new, field.name)
        if field.name in changes:
            assert value == changes[field.name]
        else:
            assert value is getattr(net, field.name)


def test_the_original_does_not_change():
    net = Net(1)
    before = jax.tree.map(np.array, jax.tree.leaves(net))
    solstice.replace(net, weight=jnp.zeros(2), width=7, scale=9.0, doubled=jnp.ones(2))
    assert net.width == 2
    for old, now in zip(before, jax.tree.leaves(net), strict=True):
        np.testing.assert_array_equal(old, now)


def test_without_changes_it_is_an_equal_copy():
    net = Net(1)
    same = solstice.replace(net)
    assert same is not net
    assert eqx.tree_equal(same, net)


def test_the_copy_is_as_frozen_as_the_original():
    new = solstice.replace(Net(1), width=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        new.width = 4


def test_a_new_static_value_is_in_the_structure():
    net = Net(1)
    new = solstice.replace(net, width=5)
    assert new.width == 5
    assert jax.tree.structure(new) != jax.tree.structure(net)
    assert jax.tree.structure(new) == jax.tree.structure(solstice.replace(new, width=5))


def test_converters_are_applied_to_new_values_alone():
    calls = []

    def convert(value):
        calls.append(value)
        return value * 10

    class Converted(eqx.Module):
        a: int = eqx.field(converter=convert)
        b: int = 0

    module = Converted(1)
    calls.clear()
    assert solstice.replace(module, b=5).a == 10
    assert calls == []
    assert solstice.replace(module, a=2).a == 20
    assert calls == [2]


def test_check_init_runs_on_the_copy():
    assert solstice.replace(Checked(0, 1), low=1).low == 1
    with pytest.raises(ValueError, match="low is above high"):
        solstice.replace(Checked(0, 1), low=2)


@pytest.mark.parametrize(
    ("changes", "message"), [({"low": 2}, "low is above high"), ({"step": 0}, "step must be above")]
)
def test_check_init_of_every_base_class_runs(changes, message):
    with pytest.raises(ValueError, match=message):
        solstice.replace(CheckedTwice(0, 1), **changes)


def test_it_works_under_jit_grad_and_scan():
    @jax.jit
    def advance(net):
        def body(net, _):
            return solstice.replace(net, weight=net.weight + net.scale), net.doubled

        return jax.lax.scan(body, net, length=4)[0]

    new = advance(Net(1))
    np.testing.assert_allclose(new.weight, 1 + 4 * 1.5)
    assert new.width == 2
    slope = jax.grad(lambda w: jnp.sum(solstice.replace(new, weight=w).weight ** 2))(new.weight)
    np.testing.assert_allclose(slope, 2 * new.weight)


def test_methods_of_the_copy_see_the_new_values():
    class Scaled(eqx.Module):
        factor: float

        def __call__(self, x):
            return self.factor * x

    assert solstice.replace(Scaled(2.0), factor=3.0)(2) == 6


def test_a_default_of_the_class_is_kept():
    class WithDefault(eqx.Module):
        a: int
        b: int = 7

    assert solstice.replace(WithDefault(1), a=2).b == 7


def test_an_unknown_field_is_named_with_one_that_is_meant():
    with pytest.raises(
        TypeError, match=r"Net has no field 'wieght'\. Did you mean 'weight'"
    ) as error:
        solstice.replace(Net(1), wieght=jnp.zeros(2))
    assert "weight, width, scale, doubled" in str(error.value)


def test_an_unknown_field_like_no_other_gets_no_suggestion():
    with pytest.raises(TypeError, match="Net has no field 'zzz'") as error:
        solstice.replace(Net(1), zzz=1)
    assert "Did you mean" not in str(error.value)


@pytest.mark.parametrize("array", [jnp.ones(2), np.ones(2)], ids=["jax", "numpy"])
def test_an_array_in_a_static_field_is_refused(array):
    with pytest.raises(TypeError, match=r"field 'width' of Net is static.*static=True"):
        solstice.replace(Net(1), width=array)


def test_a_traced_value_in_a_static_field_is_refused():
    with pytest.raises(TypeError, match="'width' of Net is static"):
        jax.jit(lambda net, x: solstice.replace(net, width=x))(Net(1), 3)
