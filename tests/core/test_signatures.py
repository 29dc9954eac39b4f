"""Functions of the user are called with the arguments that they take, or refused by name."""

import functools
from typing import Any

import pytest

import solstice
from solstice._signatures import called_with


def called(value: Any) -> Any:
    return called_with("metrics", value, "metrics=f", "outputs", "targets", "mask")


class Three:
    def __init__(self, one: int, two: int, three: int, four: int = 0) -> None: ...


@pytest.mark.parametrize(
    "value",
    [
        None,
        Three,
        lambda *arguments: arguments,
        lambda outputs, targets, mask, more=None: outputs,
        functools.partial(lambda a, b, c, d: a, 0),
        max,
    ],
)
def test_a_function_of_these_arguments_is_taken(value: Any):
    assert called(value) is value


class Two:
    def __init__(self, logits: int, labels: int) -> None: ...


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Two, r"Two takes \(logits.*Write `metrics=lambda outputs, targets, mask: Two\(...\)`"),
        (
            lambda outputs: outputs,
            r"takes \(outputs\). Write `metrics=lambda outputs, targets, mask",
        ),
        (lambda outputs, targets, mask, *, top: top, r"takes \(outputs, targets, mask, \*, top\)"),
        (lambda: 0, r"takes \(\)"),
    ],
)
def test_another_function_is_refused_with_what_it_takes(value: Any, message: str):
    with pytest.raises(
        TypeError, match=rf"metrics is called with \(outputs, targets, mask\).*{message}"
    ):
        called(value)


def test_what_is_not_a_function_is_refused_as_before():
    with pytest.raises(TypeError, match="metrics must be a function, as in `metrics=f`"):
        called(["accuracy"])


def test_an_object_without_steps_is_not_answered_with_a_class_of_its_name():
    class Duck:
        def train_step(self, batch: Any) -> None: ...

    with pytest.raises(TypeError, match=r"it is a tuple\. It is the first argument"):
        solstice.Trainer().fit(([1], [2]), [[0.0]])  # pyright: ignore
    with pytest.raises(TypeError, match=r"Write `class Duck\(solstice.Experiment\)`"):
        solstice.Trainer().fit(Duck(), [[0.0]])  # pyright: ignore
