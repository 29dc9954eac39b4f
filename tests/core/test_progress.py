"""ProgressBar: lines in a file, a bar in a terminal, and nothing left open."""

import contextlib
import io
import itertools
import os
import pty
import re
import sys
import termios
import threading

import jax.numpy as jnp
import numpy as np
import pytest
import tqdm
from clocks import stopped

import solstice
from solstice import Stop
from solstice.callbacks import ProgressBar


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """It stands still: an epoch that takes long has more lines, and tqdm writes its rate wider."""
    return stopped(monkeypatch, solstice.callbacks._progress)


class Mean(solstice.Experiment):
    def train_step(self, batch):
        return self, {name: jnp.mean(batch) for name in ("loss", "accuracy", "f1", "recall")}

    def eval_step(self, batch):
        return self.train_step(batch)

    def predict_step(self, batch):
        return batch


class Terminal(io.StringIO):
    def isatty(self):
        return True


def some(*values):
    return [np.full(2, value, np.float32) for value in values]


def written(run, out=None, **options):
    """What a run writes, with the rate of examples left out."""
    out = out or io.StringIO()
    out.kept = ProgressBar(file=out, **options)  # or the garbage collector would close its bar
    run(solstice.Trainer([out.kept]))
    return re.sub(r"[\d,]+ examples/s", "RATE", out.getvalue())


def test_a_file_has_one_line_for_an_epoch_with_its_validation():
    text = written(lambda t: t.fit(Mean(), some(1, 2), some(4), num_epochs=2), only=("loss",))
    assert text.splitlines() == [
        "epoch 1/2  step 2  RATE  train/loss 1.5000  val/loss 4.0000",
        "epoch 2/2  step 4  RATE  train/loss 1.5000  val/loss 4.0000",
    ]


def test_a_validation_within_an_epoch_has_a_line_of_its_own():
    out = io.StringIO()
    bar = ProgressBar(file=out, only=("loss",))
    trainer = solstice.Trainer([bar], val_every_n_steps=2)
    trainer.fit(Mean(), some(1, 2, 3), some(4), num_epochs=2)
    assert re.sub(r"[\d,]+ examples/s", "RATE", out.getvalue()).splitlines() == [
        "epoch 1/2 val  step 2  val/loss 4.0000",
        "epoch 1/2  step 3  RATE  train/loss 2.0000",
        "epoch 2/2 val  step 4  val/loss 4.0000",
        "epoch 2/2 val  step 6  val/loss 4.0000",
        "epoch 2/2  step 6  RATE  train/loss 2.0000",
    ]


def test_a_bar_goes_on_after_a_validation_within_its_epoch():
    out = Terminal()
    bar = ProgressBar(file=out, only=("loss",))
    trainer = solstice.Trainer([bar], val_every_n_steps=2)
    trainer.fit(Mean(), some(*range(9)), some(4))
    assert "epoch 1/1 val  step 8  val/loss 4.0000" in out.getvalue()
    assert bar._bars == {}
    assert not tqdm.tqdm._instances


def test_without_validation_a_line_has_training_alone():
    text = written(lambda t: t.fit(Mean(), some(1), num_epochs=1), only=("f1", "loss"))
    start, _, metrics = text.partition("  RATE  ")
    assert start == "epoch 1/1  step 1"
    assert sorted(metrics.split()) == ["1.0000", "1.0000", "train/f1", "train/loss"]


def test_a_run_without_a_number_of_epochs_does_not_tell_one():
    text = written(lambda t: t.fit(Mean(), some(1), max_steps=2), only=("loss",))
    assert [line.split("  ")[0] for line in text.splitlines()] == ["epoch 1", "epoch 2"]


@pytest.mark.parametrize(("method", "mode"), [("test", "test"), ("validate", "val")])
def test_an_evaluation_has_a_line_of_its_own(method, mode):
    text = written(lambda t: getattr(t, method)(Mean(), some(1, 2)), only=("loss",))
    assert text == f"{mode}  step 2  RATE  {mode}/loss 1.5000\n"


def test_a_prediction_writes_no_line():
    assert written(lambda t: list(t.predict(Mean(), some(1, 2)))) == ""


def test_two_metrics_are_shown_where_none_is_named():
    text = written(lambda t: t.fit(Mean(), some(1)))
    assert text.count("train/") == 2


def test_the_rate_counts_examples(clock):
    def slow():
        for batch in some(1, 2):
            clock.now += 0.25
            yield batch

    out = io.StringIO()
    solstice.Trainer([ProgressBar(file=out)]).fit(Mean(), slow, num_epochs=2)
    last = out.getvalue().splitlines()[-1]  # the first batch of all is read before an epoch begins
    assert "  8 examples/s" in last


def test_it_writes_to_standard_error_by_default(capsys):
    solstice.Trainer([ProgressBar()]).test(Mean(), some(1))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("test  step 1")


def test_train_and_test_show_progress_unless_told_otherwise(capsys):
    solstice.train(Mean(), train_ds=some(1))
    solstice.test(Mean(), some(1))
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["epoch", "test"]
    solstice.train(Mean(), train_ds=some(1), callbacks=[])
    solstice.test(Mean(), some(1), callbacks=[])
    assert capsys.readouterr().err == ""


@pytest.fixture
def terminal():
    """A terminal, which must have no bar open in the end."""
    terminal = Terminal()
    yield terminal
    assert not list(tqdm.tqdm._instances)


def test_a_terminal_has_a_bar_for_each_epoch_and_evaluation(terminal):
    text = written(lambda t: t.fit(Mean(), some(1, 2, 3), some(4), num_epochs=2), terminal)
    for bar in ("epoch 1/2:", "epoch 1/2 val:", "epoch 2/2:", "epoch 2/2 val:"):
        assert text.count(f"\r{bar}") >= 1
    assert "0/3 [" in text
    assert "0/1 [" in text
    lines = [line for line in re.split(r"[\r\n]", text) if "RATE" in line]
    assert [line[:9] for line in lines] == ["epoch 1/2", "epoch 2/2"]


def test_short_epochs_have_their_lines_in_order(terminal):
    text = written(lambda t: t.fit(Mean(), some(1, 2), some(4), num_epochs=30), terminal)
    found = r"epoch (\d+)/30  step (\d+)  RATE  train/accuracy (\S+) .*? val/accuracy (\S+) "
    lines = re.findall(found, text)
    assert lines == [(str(n), str(2 * n), "1.5000", "4.0000") for n in range(1, 31)]


def test_a_bar_without_a_known_length_counts(terminal):
    text = written(lambda t: t.fit(Mean(), lambda: iter(some(1, 2))), terminal)
    assert "epoch 1/1: 0step" in text


def test_the_bar_of_a_prediction_is_closed(terminal):
    assert "predict:" in written(lambda t: list(t.predict(Mean(), some(1))), terminal)


def test_a_bar_counts_every_step_up_to_the_end(terminal, monkeypatch):
    counts = []
    monkeypatch.setattr(tqdm.tqdm, "close", closing(tqdm.tqdm.close, counts))
    written(lambda t: t.fit(Mean(), some(1, 2, 3, 4, 5), num_epochs=2), terminal)
    assert counts == [5, 5, 2]  # of each epoch, and of the epochs


def closing(close, counts):
    def closes(bar):
        if not bar.disable:
            counts.append(bar.n)
        close(bar)

    return closes


def test_without_tqdm_a_terminal_has_the_lines(monkeypatch, terminal):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    text = written(lambda t: t.fit(Mean(), some(1), some(2)), terminal, only=("loss",))
    assert text == "epoch 1/1  step 1  RATE  train/loss 1.0000  val/loss 2.0000\n"


class Raises(solstice.Callback):
    def __init__(self, error, mode):
        self.error, self.mode = error, mode

    def on_step_end(self, record):
        if record.mode == self.mode:
            raise self.error


@pytest.mark.parametrize("mode", ["train", "val"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_exception_nothing_is_left_open(terminal, error, mode):
    trainer = solstice.Trainer([ProgressBar(file=terminal), Raises(error(), mode)])
    with pytest.raises(error):
        trainer.fit(Mean(), some(1, 2), some(3))
    assert not list(tqdm.tqdm._instances)
    if mode == "val":  # what the epoch had come to is not lost
        assert "train/" in terminal.getvalue()


@pytest.mark.parametrize("mode", ["train", "val"])
def test_after_a_stop_nothing_is_left_open_and_the_line_is_written(terminal, mode):
    trainer = solstice.Trainer([ProgressBar(file=terminal), Raises(Stop(), mode)])
    trainer.fit(Mean(), some(1, 2), some(3), num_epochs=2)
    assert not list(tqdm.tqdm._instances)
    assert terminal.getvalue().count(" examples/s") == 1
    assert re.search(r" examples/s[^\n]*\n", terminal.getvalue())


def test_predictions_that_are_not_read_to_the_end_leave_nothing_open():
    progress = ProgressBar(file=Terminal())  # kept, or the garbage collector would close its bar
    predictions = solstice.Trainer([progress]).predict(Mean(), some(1, 2, 3))
    next(predictions)
    predictions.close()
    left = list(tqdm.tqdm._instances)
    for bar in left:
        bar.close()
    assert left == []


def test_negative_seconds_are_refused():
    with pytest.raises(ValueError, match="seconds must be 0 or more"):
        ProgressBar(seconds=-1)


def test_the_bar_shows_the_metrics_of_the_epoch_so_far(terminal, monkeypatch):
    shown = []
    monkeypatch.setattr(tqdm.tqdm, "set_postfix_str", lambda bar, text, **_: shown.append(text))
    bar = ProgressBar(file=terminal, only=("loss",), seconds=0)
    solstice.Trainer([bar], steps_per_call=2).fit(Mean(), some(1, 2, 3, 4, 9))
    assert shown == ["loss 1.5000", "loss 2.5000", "loss 3.8000"]


def test_metrics_are_read_back_by_the_clock_and_not_by_the_step(terminal, monkeypatch):
    reads = []
    monkeypatch.setattr(ProgressBar, "_wants_metrics", never)
    shown = monkeypatch.setattr(tqdm.tqdm, "set_postfix_str", lambda *_, **__: reads.append(1))
    assert shown is None
    bar = ProgressBar(file=terminal)
    solstice.Trainer([bar], steps_per_call=1).fit(Mean(), some(*range(20)))
    assert reads == []


def never(bar, mode, now):
    return False


def test_a_long_epoch_in_a_file_tells_more_and_more_rarely(clock):
    def slow():
        for value in range(200):
            clock.now += 10.0
            yield np.full(2, value, np.float32)

    class Long:
        def __iter__(self):
            return slow()

        def __len__(self):
            return 200

    out = io.StringIO()
    bar = ProgressBar(file=out, only=("loss",))
    solstice.Trainer([bar], steps_per_call=1).fit(Mean(), Long())
    lines = out.getvalue().splitlines()
    steps = [int(line.split("  ")[1].split("/")[0]) for line in lines[:-1]]
    assert steps[0] in (3, 4)
    gaps = np.diff(steps)
    assert all(later >= gap for gap, later in itertools.pairwise(gaps))
    assert 4 <= len(lines) <= 7
    assert re.fullmatch(
        r"epoch 1/1  \d+/200 steps  0 examples/s  (\d+:)?\d+:\d\d left  loss \d+\.\d+", lines[0]
    )
    assert lines[-1].startswith("epoch 1/1  step 200  ")


@pytest.fixture
def wide():
    """A function that gives a terminal of so many columns, which somebody reads."""
    opened = []

    def of(columns):
        master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, columns))
        reader = threading.Thread(target=drain, args=[master])
        reader.start()
        opened.append((os.fdopen(slave, "w"), master, reader))
        return opened[-1][0]

    yield of
    for file, master, reader in opened:
        file.close()
        reader.join()
        os.close(master)


def drain(master):
    with contextlib.suppress(OSError):  # the terminal is closed
        while os.read(master, 4096):
            pass


@pytest.mark.parametrize(
    ("columns", "counts"), [(40, {0}), (60, {0}), (80, {1, 2}), (100, {2}), (140, {2})]
)
def test_metrics_are_whole_or_left_out_in_a_narrow_terminal(wide, monkeypatch, columns, counts):
    frames = []
    update = tqdm.tqdm.update

    def updates(bar, n):
        update(bar, n)
        frames.append(str(bar))

    monkeypatch.setattr(tqdm.tqdm, "update", updates)
    bar = ProgressBar(file=wide(columns), seconds=0)
    solstice.Trainer([bar], steps_per_call=7).fit(
        Mean(), some(*range(23)), some(*range(9)), num_epochs=2
    )
    numbers = r"(accuracy|f1) \d+\.\d{4}(?!\d)"
    steps = [frame for frame in frames if "epochs:" not in frame]
    assert steps
    assert all(len(frame) <= columns for frame in frames)
    for frame in steps:
        whole = len(re.findall(numbers, frame))
        assert whole in counts, frame
        assert len(re.findall("acc|f1", frame)) == whole, frame


@pytest.mark.parametrize(("columns", "names"), [(80, ["accuracy"]), (120, ["accuracy", "f1"])])
def test_a_narrow_terminal_has_one_metric_of_each_mode_in_a_line(monkeypatch, columns, names):
    class Terminal(io.StringIO):
        def fileno(self):
            return 7

    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((columns, 24)))
    file = Terminal()
    solstice.Trainer([ProgressBar(file=file)]).fit(Mean(), some(1), some(2))
    line = file.getvalue()
    assert re.findall(r"(train|val)/(\w+) ", line) == [
        (mode, name) for mode in ("train", "val") for name in names
    ]
