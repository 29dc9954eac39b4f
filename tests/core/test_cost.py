"""What a step costs, beside what XLA says of it."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from solstice._engine._cost import cost_of, unchanged

A = jnp.ones((32, 64))
B = jnp.ones((64, 16))
IMAGES = jnp.ones((8, 12, 12, 3))
KERNEL = jnp.ones((3, 3, 3, 5))


def convolve(images: Any, kernel: Any) -> Any:
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=dims)


def repeat(a: Any, b: Any) -> Any:
    return jax.lax.scan(lambda c, _: (c @ b @ b.T, None), a, length=10)[0]


def gradient(a: Any, b: Any) -> Any:
    return jax.grad(lambda b: jax.nn.relu(a @ b).sum())(b)


@pytest.mark.parametrize(
    ("function", "arguments", "expected", "convolution"),
    [
        (lambda a, b: a @ b, (A, B), 2 * 32 * 64 * 16, False),
        (convolve, (IMAGES, KERNEL), 2 * 8 * 10 * 10 * 5 * 27, True),
        (jax.jit(convolve), (IMAGES, KERNEL), 2 * 8 * 10 * 10 * 5 * 27, True),
        (repeat, (A, B), 10 * 2 * 2 * 32 * 64 * 16, False),
        (lambda a, b: jax.lax.cond(True, jnp.dot, jnp.dot, a, b), (A, B), 4 * 32 * 64 * 16, False),
        (gradient, (A, B), 2 * 2 * 32 * 64 * 16, False),
    ],
    ids=["product", "convolution", "jit", "scan", "cond", "gradient"],
)
def test_operations_are_counted(function: Any, arguments: Any, expected: int, convolution: bool):
    cost = cost_of(jax.make_jaxpr(function)(*arguments).jaxpr)
    assert cost.flops == pytest.approx(expected, rel=0.1)
    assert cost.has_convolution == convolution


@pytest.mark.parametrize(
    ("function", "is_known"),
    [
        (gradient, True),
        (repeat, True),
        (lambda a, b: jax.random.permutation(jax.random.key(0), a), True),
        (lambda a, b: jax.lax.fori_loop(0, a[0, 0].astype(int), lambda _, x: x + 1, a), False),
        (lambda a, b: jax.jit(jnp.linalg.svd)(a), False),
        (lambda a, b: jnp.linalg.solve(b.T @ b, b.T), False),
        (lambda a, b: jax.pure_callback(lambda x: x, a, a), False),
        (lambda a, b: jax.lax.cond(True, jnp.linalg.cholesky, jnp.tanh, b.T @ b), False),
    ],
    ids=["gradient", "scan", "permutation", "loop", "svd", "solve", "callback", "cond"],
)
def test_what_the_results_do_not_show_is_known_to_be_unknown(function: Any, is_known: bool):
    assert cost_of(jax.make_jaxpr(function)(A, B).jaxpr).is_known == is_known


@pytest.mark.parametrize("function", [lambda a, b: a @ b, gradient], ids=["product", "gradient"])
def test_they_are_about_what_xla_counts(function: Any):
    lowered = jax.jit(function).lower(A, B)
    analysis: Any = lowered.cost_analysis()
    assert cost_of(jax.make_jaxpr(function)(A, B).jaxpr).flops == pytest.approx(
        analysis["flops"], rel=0.1
    )


@jax.jit
def first(a: Any, b: Any) -> Any:
    return a * 2, b


def nested(a: Any, b: Any) -> Any:
    """Returns `b` through three jitted functions, and swaps nothing."""
    a, b = first(a, b)
    return jax.jit(lambda x, y: jax.jit(lambda z, u: (z + 1, u))(x, y))(a, b)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a, b: (a, b), (0, 1)),
        (lambda a, b: (a + 1, b), (1,)),
        (lambda a, b: (a + 1, b * 2), ()),
        (nested, (1,)),
        (jax.jit(nested), (1,)),
        (lambda a, b: (a, b, a + 1), (0, 1)),
    ],
    ids=["none", "one", "both", "nested", "jit", "another result"],
)
def test_the_arrays_that_a_step_returns_unchanged(function: Any, expected: tuple[int, ...]):
    assert unchanged(jax.make_jaxpr(function)(A, B).jaxpr, 2) == expected


def test_arrays_that_change_places_change():
    jaxpr = jax.make_jaxpr(jax.jit(lambda a, b: (b, a)))(A, A + 1)
    assert unchanged(jaxpr.jaxpr, 2) == ()
