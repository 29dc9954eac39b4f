"""Each callback of a resumed run takes up its own memory, and what does not fit is said."""

import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import solstice
from solstice._loop._owners import Owner, matched
from solstice.callbacks import Checkpoint, EarlyStopping, History, Logging
from solstice.checkpoint import CheckpointError
from solstice.loggers import CSV

pytest.importorskip("safetensors")

DATA = [np.ones(2, np.float32)] * 2


class Falling(solstice.Experiment):
    n: np.ndarray

    def train_step(self, batch):
        n = self.n + 1
        return solstice.replace(self, n=n), {"one": 1 / n, "ten": 10 / n, "loss": n}

    def eval_step(self, batch):
        return self, {}


def fit(callbacks, folder, num_epochs, **options):
    """A run, or the rest of it, and what is warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solstice.Trainer([*callbacks, Checkpoint(folder)]).fit(
            Falling(np.float32(0)), DATA, num_epochs=num_epochs, resume="last", **options
        )
    return [str(warning.message) for warning in caught]


def stopping(name, **options):
    return EarlyStopping(f"train/{name}", **{"mode": "min", **options})


def best(name, epochs):
    """Of `1 / n` or `10 / n` over the two steps of the newest epoch."""
    scale = {"one": 1, "ten": 10}[name]
    return scale * float(np.mean(np.float32([1 / (2 * epochs - 1), 1 / (2 * epochs)])))


class Remembers(solstice.Callback):
    """The first epoch that it has seen, and a name."""

    def __init__(self, name=None):
        self.name = name
        self.seen = []

    def on_epoch_end(self, record):
        self.seen.append(record.epoch)

    def state_dict(self):
        return {"name": self.name, "seen": self.seen}

    def load_state_dict(self, state):
        self.remembered = state["name"]
        self.seen = list(state["seen"])


class Unnamed(Remembers):
    """Keeps its argument where nothing can find it."""

    def __init__(self, name):
        super().__init__()
        self.__dict__["name"] = self._Unnamed__name = name

    def state_hint(self):
        return {}


# Who takes up what


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_in_any_order_each_has_its_own(tmp_path, order):
    def make():
        return [
            stopping("one", patience=9),
            stopping("ten", patience=9),
            stopping("ten", mode="max"),
        ]

    fit(make(), tmp_path / "a", 2)
    callbacks = make()
    assert fit([callbacks[i] for i in order], tmp_path / "a", 3, strict_resume=True) == []
    np.testing.assert_allclose(callbacks[0].best, best("one", 3), rtol=1e-5)
    np.testing.assert_allclose(callbacks[1].best, best("ten", 3), rtol=1e-5)
    np.testing.assert_allclose(callbacks[2].best, best("ten", 1), rtol=1e-5)
    assert [c.best_epoch for c in callbacks] == [2, 2, 0]


@pytest.mark.parametrize(
    "other",
    [stopping("ten", patience=9), stopping("one", mode="max", patience=9)],
    ids=["monitor", "mode"],
)
def test_another_monitor_or_mode_has_no_memory_and_is_named(tmp_path, other):
    fit([stopping("one", patience=9)], tmp_path / "a", 2)
    with pytest.raises(CheckpointError, match="EarlyStopping is not among the callbacks now"):
        fit([other], tmp_path / "a", 3, strict_resume=True)
    (said,) = fit([other], tmp_path / "a", 3)
    name = "solstice.callbacks.EarlyStopping"
    assert f"not among the callbacks now: {name}(monitor='train/one', mode='min')" in said
    monitor = f"monitor='{other.monitor}', mode='{other.mode}'"
    assert f"is new, so it starts without the state of that run: {name}({monitor})" in said
    assert other.best_epoch == 2


def test_one_put_before_it_does_not_take_its_memory(tmp_path):
    fit([stopping("one", patience=9)], tmp_path / "a", 2)
    new, old = stopping("ten", patience=9), stopping("one", patience=9)
    (said,) = fit([new, old], tmp_path / "a", 2)
    assert said.count("solstice.callbacks.EarlyStopping(monitor='train/ten', mode='min')") == 1
    assert "train/one" not in said
    assert new.best is None
    np.testing.assert_allclose(old.best, best("one", 2), rtol=1e-5)


def test_more_patience_is_a_setting(tmp_path):
    fit([stopping("one", patience=2)], tmp_path / "a", 2)
    callback = stopping("one", patience=7, min_delta=0.01)
    assert fit([callback], tmp_path / "a", 2, strict_resume=True) == []
    np.testing.assert_allclose(callback.best, best("one", 2), rtol=1e-5)


def test_of_one_monitor_those_that_are_most_alike(tmp_path):
    fit([stopping("one", min_delta=d, patience=9) for d in (0, 9)], tmp_path / "a", 3)
    fine, coarse = (stopping("one", min_delta=d, patience=8) for d in (0, 9))
    assert fit([coarse, fine], tmp_path / "a", 3, strict_resume=True) == []
    assert (fine.best_epoch, coarse.best_epoch) == (2, 0)


def test_those_of_others_are_told_apart_by_what_they_were_made_with(tmp_path):
    fit([Remembers("a"), Remembers("b")], tmp_path / "a", 1)
    b, a = Remembers("b"), Remembers("a")
    assert fit([b, a], tmp_path / "a", 2, strict_resume=True) == []
    assert (a.remembered, b.remembered) == ("a", "b")


def test_those_that_nothing_tells_apart_are_matched_in_order(tmp_path):
    fit([Unnamed("a"), Unnamed("b")], tmp_path / "a", 1)
    first, second = Unnamed("c"), Unnamed("d")
    assert fit([first, second], tmp_path / "a", 2, strict_resume=True) == []
    assert (first.remembered, second.remembered) == ("a", "b")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (3, 2)])
def test_if_their_number_changes_it_is_said(tmp_path, before, after):
    fit([Unnamed("a") for _ in range(before)], tmp_path / "a", 1)
    with pytest.raises(CheckpointError, match=f"there were {before} of .*Unnamed"):
        fit([Unnamed("a") for _ in range(after)], tmp_path / "a", 2, strict_resume=True)
    said = fit([Unnamed("a") for _ in range(after)], tmp_path / "a", 2)[0]
    assert f"and now there are {after}: they are matched in order" in said


def test_a_class_of_the_same_name_from_elsewhere_is_another(tmp_path):
    fit([Remembers()], tmp_path / "a", 1)
    other = type("Remembers", (Remembers,), {"__module__": "elsewhere"})()
    (said,) = fit([other], tmp_path / "a", 2)
    assert "Remembers is new" in said
    assert "elsewhere.Remembers" in said


def test_a_script_and_the_module_that_it_is_are_one(tmp_path):
    script = type("Remembers", (Remembers,), {"__module__": "__main__"})
    fit([script("a")], tmp_path / "a", 1)
    imported = type("Remembers", (Remembers,), {"__module__": "train"})("a")
    assert fit([imported], tmp_path / "a", 2, strict_resume=True) == []
    assert imported.remembered == "a"


def test_metrics_of_a_window_go_to_who_reads_them(tmp_path):
    """Of 4 and of 6 steps; the first run ends at step 10, with 2 and with 4 steps in them."""

    def make():
        seen = {every: [] for every in (4, 6)}
        loggers = {
            every: Logging(lambda m, step, e=every: seen[e].append((step, m)), every=every)
            for every in seen
        }
        return seen, loggers

    whole, loggers = make()
    fit([loggers[4], loggers[6]], tmp_path / "whole", 9)
    seen, loggers = make()
    fit([loggers[4], loggers[6]], tmp_path / "a", 5)
    seen, loggers = make()
    fit([loggers[6], loggers[4]], tmp_path / "a", 9, strict_resume=True)
    assert seen == {every: [row for row in rows if row[0] > 10] for every, rows in whole.items()}


def test_two_histories(tmp_path):
    fit([History(every=1), History()], tmp_path / "a", 2)
    epochs, steps = History(), History(every=1)
    assert fit([epochs, steps], tmp_path / "a", 3, strict_resume=True) == []
    assert [row["span"] for row in epochs.rows] == ["epoch"] * 3
    assert len(steps.rows) == 3 + 6


def test_a_key_must_be_plain():
    class Odd(Remembers):
        def state_key(self):
            return {"what": {1, 2}}

    with pytest.raises(TypeError, match=r"Odd\.state_key\(\) holds \{1, 2\}"):
        Owner.of(Odd())


def test_what_a_callback_was_made_with_cannot_be_read_in_a_checkpoint(tmp_path):
    class Sends(Remembers):
        def __init__(self, token):
            super().__init__()
            self._token = token

    fit([Sends("secret")], tmp_path / "a", 1)
    manifest = (tmp_path / "a/step-2/manifest.json").read_text()
    assert "Sends" in manifest
    assert "secret" not in manifest


# Whatever is given


names = st.lists(st.sampled_from("abc"), max_size=4)


@given(before=names, after=names)
def test_each_memory_is_taken_up_once_by_one_that_it_fits(before, after):
    def owners(these):
        return {
            f"{name}-{i}": Owner.of(EarlyStopping(f"val/{name}", patience=1 + i % 2))
            for i, name in enumerate(these)
        }

    saved, now = owners(before), owners(after)
    found = matched(saved, now)
    assert len({*found.values()}) == len(found)
    assert all(saved[old].key == now[new].key for new, old in found.items())
    for name in "abc":
        taken = sum(new.startswith(name) for new in found)
        assert taken == min(before.count(name), after.count(name))


@given(st.permutations([("a", 1), ("a", 2), ("b", 1), ("c", 3)]))
def test_moved_to_another_folder_each_has_its_own(order):
    def owners(folder, these):
        return {str(t): Owner.of(CSV(Path(folder, f"{t[0]}.csv"), every=t[1])) for t in these}

    found = matched(owners("/old/runs", sorted(order)), owners("/new/place/runs", order))
    assert found == {name: name for name in found}
    assert len(found) == 4


class MadeAtTheStart(solstice.Callback):
    """Its state is made in `on_fit_start`."""

    def on_fit_start(self, record):
        self.seen = 0

    def on_epoch_end(self, record):
        self.seen += record.mode == "train"

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


@pytest.mark.parametrize("new", [False, True])
def test_a_state_that_is_made_when_the_run_begins_is_taken_up(tmp_path, new):
    fit([] if new else [MadeAtTheStart()], tmp_path / "a", 2)
    callback = MadeAtTheStart()
    if new:
        (warning,) = fit([callback], tmp_path / "a", 3)
        assert "MadeAtTheStart is new" in warning
    else:
        fit([callback], tmp_path / "a", 3, strict_resume=True)
    assert callback.seen == (1 if new else 3)
