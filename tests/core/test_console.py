"""What is shown never ends a run, whatever stream there is to show it on."""

import ast
import io
import pathlib
import sys
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice._console import encodable, write_line
from solstice.callbacks import Checkpoint, Profiler, ProgressBar

PACKAGES = pathlib.Path(__file__).parents[2] / "packages"


class Tee:
    """As users write one: neither `isatty` nor `flush`, nor an encoding."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


class Gone(io.StringIO):
    """A terminal that has been closed meanwhile, as after `nohup`."""

    def write(self, text):
        raise OSError(5, "Input/output error")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


def encoded(name):
    return io.TextIOWrapper(io.BytesIO(), encoding=name, errors="strict")


STREAMS = {
    "none": lambda: None,
    "tee": Tee,
    "closed": closed,
    "gone": Gone,
    "ascii": lambda: encoded("ascii"),
    "latin-1": lambda: encoded("latin-1"),
}


class Mean(solstice.Experiment):
    def train_step(self, batch):
        return self, {"Verlust-größe": jnp.mean(batch), "損失": jnp.mean(batch)}

    def eval_step(self, batch):
        return self.train_step(batch)


def batches():
    return [np.full(2, value, np.float32) for value in (1, 2)]


@pytest.mark.parametrize("kind", STREAMS)
def test_a_run_with_the_usual_callbacks_needs_no_stream(kind, monkeypatch):
    monkeypatch.setattr(sys, "stderr", STREAMS[kind]())
    solstice.train(Mean(), train_ds=batches(), val_ds=batches(), num_epochs=2)
    assert solstice.test(Mean(), batches())["損失"] == 1.5


@pytest.mark.parametrize("kind", STREAMS)
def test_what_is_said_of_a_run_needs_no_stream(kind, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stderr", STREAMS[kind]())
    monkeypatch.setattr(sys, "stdout", STREAMS[kind]())
    callbacks = [
        ProgressBar(file=sys.stdout),
        Checkpoint(tmp_path / "größe"),
        Profiler(tmp_path / "profile", start=100),
    ]
    for num_epochs in (1, 2, 2):  # nothing saved yet, within the run, and after its end
        trainer = solstice.Trainer(callbacks)
        trainer.fit(Mean(), batches(), num_epochs=num_epochs, resume="last")
        trainer.explain()


def test_a_stream_without_isatty_has_the_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Tee())
    solstice.train(Mean(), train_ds=batches(), num_epochs=2)
    assert [line[:9] for line in sys.stderr.text.splitlines()] == ["epoch 1/2", "epoch 2/2"]


@pytest.mark.parametrize("name", ["ascii", "latin-1", "cp1252", "utf-8", "no-such-encoding"])
def test_what_an_encoding_has_stays_and_the_rest_is_escaped(name):
    class Stream:
        encoding = name

    text = encodable("größe 損失", Stream())
    has_all = name in ("utf-8", "no-such-encoding")
    has_latin = name != "ascii"
    assert text == ("größe " if has_latin else r"gr\xf6\xdfe ") + (
        "損失" if has_all else r"\u640d\u5931"
    )


def test_a_line_is_flushed():
    stream = encoded("ascii")
    write_line("größe", stream)
    assert stream.buffer.getvalue() == b"gr\\xf6\\xdfe\n"


def test_the_package_has_no_words_that_a_terminal_may_not_show():
    found = [
        (path, node.lineno, node.value)
        for path in PACKAGES.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and not node.value.isascii()
    ]
    assert found == []


def test_nobody_else_writes_to_a_stream():
    """`print` fails where `write_line` does not; the doctor has a stream of its own."""
    found = [
        str(path.relative_to(PACKAGES))
        for path in PACKAGES.rglob("*.py")
        if path.name != "__main__.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and node.id == "print"
    ]
    assert found == []


def test_a_warning_needs_no_stream(monkeypatch):
    def show(message, *about):  # as Python does, where pytest does not listen
        sys.stderr.write(str(message))

    class Vector(Mean):
        def train_step(self, batch):
            return self, batch

    monkeypatch.setattr(warnings, "showwarning", show)
    for kind in ("tee", "closed"):
        monkeypatch.setattr(sys, "stderr", STREAMS[kind]())
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            solstice.train(Vector(), train_ds=batches())
        assert kind == "closed" or "give no metrics" in sys.stderr.text
