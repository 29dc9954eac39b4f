"""What is shown never ends a run, whatever stream there is to show it on."""

import ast
import io
import logging
import pathlib
import subprocess
import sys
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice._console import encodable, say, write_line
from solstice.callbacks import Checkpoint, Logging, Profiler, ProgressBar

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


def unconfigured(monkeypatch):
    """No handler beside that of Solstice: pytest sets its own when a test begins."""
    monkeypatch.setattr(logging.root, "handlers", [])


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("has_handler", [False, True])
def test_what_is_said_of_a_run_needs_no_stream(kind, has_handler, monkeypatch, tmp_path):
    unconfigured(monkeypatch)
    monkeypatch.setattr(sys, "stderr", STREAMS[kind]())
    if has_handler:
        handler = logging.StreamHandler(STREAMS[kind]() or io.StringIO())
        monkeypatch.setattr(logging.root, "handlers", [handler])
    monkeypatch.setattr(sys, "stdout", STREAMS[kind]())
    callbacks = [
        ProgressBar(file=sys.stdout),
        Checkpoint(tmp_path / "größe"),
        Profiler(tmp_path / "profile", start=100),
    ]
    for num_epochs in (1, 2, 2):  # nothing saved yet, within the run, and after its end
        trainer = solstice.Trainer(callbacks)
        trainer.fit(Mean(), batches(), num_epochs=num_epochs, resume="last")


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


def test_events_are_printed_where_nobody_listens(monkeypatch):
    unconfigured(monkeypatch)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    solstice.Trainer([Logging(only=["損失"])]).fit(Mean(), batches())
    assert sys.stderr.getvalue() == "solstice: step 2  train/損失 1.5\n"


@pytest.mark.parametrize("owner", ["", "solstice"])
def test_events_go_to_the_handlers_of_the_user_alone(monkeypatch, owner):
    unconfigured(monkeypatch)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    own, logger = io.StringIO(), logging.getLogger(owner)
    handlers = [*logger.handlers, logging.StreamHandler(own)]
    monkeypatch.setattr(logger, "handlers", handlers)
    say("first")
    assert (own.getvalue(), sys.stderr.getvalue()) == ("first\n", "")


def test_the_level_of_the_user_counts(monkeypatch):
    unconfigured(monkeypatch)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(logging.getLogger("solstice"), "level", logging.WARNING)
    logging.getLogger("solstice").manager._clear_cache()
    say("an event")
    say("a signal", logging.WARNING)
    logging.getLogger("solstice").manager._clear_cache()
    assert sys.stderr.getvalue() == "solstice: a signal\n"


def test_a_level_set_before_the_import_stays():
    code = """
import logging
logging.getLogger("solstice").setLevel("ERROR")
import solstice
from solstice._console import say
say("not shown", logging.WARNING)
say("shown", logging.ERROR)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "solstice: shown\n"


def test_a_signal_within_a_write_is_shown(monkeypatch, capfd):
    unconfigured(monkeypatch)

    class Busy(Tee):
        def write(self, text):
            raise RuntimeError("reentrant call")

    monkeypatch.setattr(sys, "stderr", Busy())
    say("saving", logging.WARNING)
    assert capfd.readouterr().err == "solstice: saving\n"


def test_an_explanation_is_text_that_a_repl_shows_as_it_prints():
    trainer = solstice.Trainer()
    trainer.fit(Mean(), batches())
    text = trainer.explain()
    assert isinstance(text, str)
    assert repr(text) == str(text) == f"{text}"
    assert text.startswith("train: ")
    assert len(text.splitlines()) > 3
