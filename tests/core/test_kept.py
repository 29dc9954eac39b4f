"""Records that are kept, and metrics that are computed when somebody reads them."""

import copy
import operator
import pickle
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice import _tree
from solstice._engine import Reading
from solstice._loop import _stages
from solstice.history._rows import Rows

HOOKS = ["on_fit_start", "on_epoch_start", "on_call_end", "on_epoch_end", "on_fit_end"]
BATCHES = [np.full(2, value, np.float32) for value in range(1, 5)]


class Total(solstice.Metrics):
    """Counts how often it is computed."""

    total: Any
    can_raise = False
    computed: ClassVar[list[float]] = []

    def merge(self, other: Any) -> Any:
        return solstice.replace(self, total=self.total + other.total)

    def compute(self) -> Any:
        if not isinstance(self.total, jax.core.Tracer):
            self.computed.append(float(self.total))
        return {"total": self.total, "half": self.total / 2}


class Loud(Total):
    """Overrides `compute`, and so has promised nothing; it raises at its second epoch."""

    def compute(self) -> Any:
        if float(self.total) > 25:
            raise ValueError("too much")
        return {"total": self.total}


class Adds(solstice.Experiment):
    """Its state says how many batches it has seen."""

    seen: Any
    kind: Any = None

    def train_step(self, batch: Any) -> Any:
        new = self.seen + batch.sum()
        return solstice.replace(self, seen=new), self.kind(new[0] - new[0] + batch.sum())

    def eval_step(self, batch: Any) -> Any:
        # Changed by each step, so that the record at the end differs from that of the start.
        return solstice.replace(self, seen=self.seen + 1000), self.kind(batch.sum())


def adds(kind: Any = Total) -> Adds:
    return Adds(jnp.zeros(3), kind)


class Reads(solstice.Callback):
    """Reads the fields of each record at once."""

    every = None

    def __init__(self) -> None:
        self.found: list[Any] = []
        for hook in HOOKS:
            setattr(self, hook, self.hears)

    def hears(self, record: solstice.Record) -> None:
        self.found.append(read(record))


class Keeps(Reads):
    """Keeps the records, and reads their fields after the run."""

    def hears(self, record: solstice.Record) -> None:
        self.found.append(record)


def read(record: solstice.Record) -> Any:
    fields = {name: getattr(record, name) for name in record.given if name != "snapshot"}
    if "experiment" in fields:
        fields["experiment"] = np.asarray(fields["experiment"].seen)
    return record.mode, record.step, record.epoch_step, fields


@pytest.mark.parametrize("steps_per_call", [None, 1])
@pytest.mark.parametrize("every", [None, 3])
def test_a_record_that_is_kept_is_that_of_its_moment(every: Any, steps_per_call: Any) -> None:
    reads, keeps = Reads(), Keeps()
    for callback in (reads, keeps):
        trainer = solstice.Trainer(
            [callback], val_every_n_steps=every, steps_per_call=steps_per_call
        )
        trainer.fit(adds(), BATCHES, BATCHES[:2], num_epochs=3)
    np.testing.assert_equal([read(record) for record in keeps.found], reads.found)
    assert len({str(moment) for moment in reads.found}) == len(reads.found) - 1  # the start


def test_a_kept_record_outlives_an_error_in_the_run() -> None:
    class Fails(Keeps):
        def on_exception(self, record: Any, error: BaseException) -> None:
            self.found.append(record)

    keeps = Fails()
    with pytest.raises(ValueError, match="too much"):
        solstice.Trainer([keeps]).fit(adds(Loud), lambda e: BATCHES * (1 + e), num_epochs=3)
    assert keeps.found[-1].experiment.seen[0] == 60
    assert keeps.found[0].experiment.seen[0] == 0


def test_metrics_that_cannot_raise_are_computed_when_somebody_reads_them() -> None:
    Total.computed.clear()
    trainer = solstice.Trainer([])
    trainer.fit(adds(), BATCHES, BATCHES[:2], num_epochs=4)
    assert Total.computed == [20, 6]  # the first row of each kind, so that errors come early
    rows = trainer.history.rows
    assert len(rows) == 8
    assert Total.computed == [20, 6]
    assert [row["total"] for row in rows] == [20, 6] * 4
    assert len(Total.computed) == 8
    assert [row["half"] for row in rows] == [10, 3] * 4
    assert len(Total.computed) == 8
    assert {type(row["total"]) for row in rows} == {float}


def test_metrics_are_computed_once_for_all_callbacks() -> None:
    Total.computed.clear()
    callbacks = [Reads(), Reads(), solstice.callbacks.Logging(lambda metrics, step: None)]
    trainer = solstice.Trainer(callbacks)
    trainer.fit(adds(), BATCHES, num_epochs=4)
    at_epochs = [total for total in Total.computed if total == 20]
    so_far = 2 * 4  # `on_call_end` reads them again, for both
    assert len(at_epochs) <= 4 + so_far
    assert [row["total"] for row in trainer.history.rows] == [20] * 4


def test_metrics_that_may_raise_raise_in_their_epoch() -> None:
    trainer = solstice.Trainer([])
    ends = []

    class Ends(solstice.Callback):
        every = None

        def on_epoch_end(self, record: solstice.Record) -> None:
            ends.append(record.epoch)

    trainer = solstice.Trainer([Ends()])
    grown = [np.full(2, value, np.float32) for value in (1, 2)]
    trainer.fit(adds(Loud), lambda epoch: [grown[0]] if epoch == 0 else grown, num_epochs=2)
    with pytest.raises(ValueError, match="too much"):
        trainer.fit(
            adds(Loud), lambda epoch: [grown[0]] if epoch == 0 else BATCHES * 2, num_epochs=3
        )
    assert ends == [0, 1, 0]


def test_a_promise_that_is_broken_raises_at_each_read() -> None:
    class Broken(Total):
        can_raise = False

        def compute(self) -> Any:
            if not isinstance(self.total, jax.core.Tracer) and self.total > 25:
                raise ValueError("too much")
            return {"total": self.total}

    trainer = solstice.Trainer([])
    trainer.fit(adds(Broken), lambda epoch: BATCHES * (1 + epoch), num_epochs=2)
    for _ in range(2):
        with pytest.raises(ValueError, match="too much"):
            _ = trainer.history.rows[0]


def test_a_callback_that_changes_its_metrics_changes_no_others() -> None:
    class Changes(solstice.Callback):
        every = None

        def on_epoch_end(self, record: solstice.Record) -> None:
            record.metrics["total"] = -1

    trainer = solstice.Trainer([Changes()])
    trainer.fit(adds(), BATCHES, num_epochs=3)
    assert [row["total"] for row in trainer.history.rows] == [20] * 3


def test_records_and_histories_are_copied_with_their_values() -> None:
    keeps = Keeps()
    trainer = solstice.Trainer([keeps])
    trainer.fit(adds(), BATCHES, BATCHES, num_epochs=3)
    both = {"experiment", "metrics"}
    record = next(r for r in keeps.found if r.mode == "val" and r.given.keys() == both)
    for one in (copy.deepcopy(record), pickle.loads(pickle.dumps(record.only("metrics")))):
        assert one.metrics == {"total": 20.0, "half": 10.0}
    for history in (copy.deepcopy(trainer.history), pickle.loads(pickle.dumps(trainer.history))):
        assert history.rows == trainer.history.rows
    assert not hasattr(record.only("metrics"), "experiment")


def test_nothing_is_copied_for_callbacks_that_read_no_experiment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied, made = [], []
    copy_in_place, make_stepper = _tree.copy_in_place, _stages.make_stepper

    def copies(arrays: Any, indices: Any) -> None:
        copied.append(len(indices))
        copy_in_place(arrays, indices)

    def makes(*arguments: Any, **options: Any) -> Any:
        made.append(arguments[1])
        return make_stepper(*arguments, **options)

    monkeypatch.setattr(_tree, "copy_in_place", copies)
    monkeypatch.setattr(_stages, "make_stepper", makes)
    for every in (None, 3):
        copied.clear()
        made.clear()
        trainer = solstice.Trainer([solstice.callbacks.History()], val_every_n_steps=every)
        trainer.fit(adds(), BATCHES, BATCHES, num_epochs=5)
        assert copied == [1]  # the array of the caller
        assert made == ["train_step", "eval_step"]


def test_an_epoch_begins_while_the_device_computes_the_metrics_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    open_ones: set[int] = set()
    made, fetch = Reading.__init__, Reading.fetch

    def makes(self: Any, total: Any) -> None:
        made(self, total)
        open_ones.add(id(self))

    def fetches(self: Any, times: Any) -> None:
        before = times.device
        fetch(self, times)
        assert times.device > before
        open_ones.discard(id(self))
        assert all(isinstance(leaf, np.ndarray) for leaf in self._leaves)

    monkeypatch.setattr(Reading, "__init__", makes)
    monkeypatch.setattr(Reading, "fetch", fetches)

    class Counts(solstice.Callback):
        every = None

        def __init__(self, waits: bool) -> None:
            self.waits_for_device = waits
            self.counts: list[int] = []

        def on_epoch_start(self, record: solstice.Record) -> None:
            self.counts.append(len(open_ones))

        def on_epoch_end(self, record: solstice.Record) -> None:
            self.counts.append(len(open_ones))

    class AtSteps(Counts):
        every = 2
        needs = ("metrics",)

        def on_step_end(self, record: solstice.Record) -> None:
            if record.mode == "train":
                self.counts.append(-len(open_ones))

    class Measures(solstice.Callback):
        every = None

        def measure(self, record: solstice.Record) -> Any:
            return {"open": len(open_ones)}

    # By epoch, at the start and end of the training and of the validation. The first row of each
    # kind is read at once.
    late = [0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    for waits, expected in [(False, late), (True, [0] * 16)]:
        callback = Counts(waits)
        trainer = solstice.Trainer([callback])
        trainer.fit(adds(), BATCHES, BATCHES, num_epochs=4)
        assert callback.counts == expected
        assert not open_ones
        assert trainer.history.rows[-1]["total"] == 20
    for waits in (False, True):
        steps = AtSteps(waits)
        solstice.Trainer([steps]).fit(adds(), BATCHES)
        assert steps.counts == ([0, 0, 0, 0] if waits else [0, -1, -2, 1])
    trainer = solstice.Trainer([Measures(), solstice.callbacks.History(every=2)])
    trainer.fit(adds(), BATCHES, num_epochs=4)
    assert {row["open"] for row in trainer.history.rows} == {0}


def test_a_validation_of_other_batches_is_made_anew() -> None:
    class Lengths(solstice.Metrics):
        """As long as a batch."""

        each: Any

        def merge(self, other: Any) -> Any:
            return Lengths(self.each + other.each)

        def compute(self) -> Any:
            return {"each": self.each}

    class Measures(Adds):
        def eval_step(self, batch: Any) -> Any:
            return self, Lengths(batch)

    def longer(epoch: int) -> Any:
        return [np.full(1 + epoch // 2, epoch, np.float32)] * 2

    trainer = solstice.Trainer([])
    trainer.fit(Measures(jnp.zeros(3), Total), BATCHES, longer, num_epochs=4)
    found = [row["each"].tolist() for row in trainer.history.rows if row["mode"] == "val"]
    assert found == [[0], [2], [4, 4], [6, 6]]


ACTIONS: dict[str, Any] = {
    "length": len,
    "all": lambda rows: [*rows],
    "last": lambda rows: rows[-1] if rows else None,
    "slice": lambda rows: rows[1:],
    "backwards": lambda rows: list(reversed(rows)),
    "sum": lambda rows: operator.add(rows, [{"a": 7}]),
    "sum of a list": lambda rows: operator.add([{"a": 7}], rows),
    "sum of two": lambda rows: rows + rows,
    "twice": lambda rows: rows * 2,
    "repr": repr,
    "is": lambda rows: {"a": 1} in rows,
    "count": lambda rows: rows.count({"a": 1}),
    "copy": lambda rows: rows.copy(),
    "deep": copy.deepcopy,
    "pickle": lambda rows: pickle.loads(pickle.dumps(rows)),
    "array": lambda rows: np.array(rows, object).tolist(),
    "tuple": lambda rows: [*tuple(rows)],
    "truth": bool,
}


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=6), st.sampled_from(sorted(ACTIONS)), st.booleans())
def test_rows_that_wait_are_rows(later: list[bool], action: str, compares: bool) -> None:
    plain, rows, other = [], Rows(), Rows()
    for index, waits in enumerate(later):
        plain.append({"a": index})
        for those in (rows, other):
            those.add_later({"a": index}.copy) if waits else those.append({"a": index})
    if compares:
        assert rows == other
        assert not operator.ne(rows, other)
        assert plain == other
    assert ACTIONS[action](rows) == ACTIONS[action](plain)
    rows.extend(other)
    rows += other
    assert list(rows) == plain * 3


def test_a_validation_checks_its_batches_with_the_newest_values() -> None:
    class Narrows(solstice.Experiment):
        """Runs uncompiled, and allows less at each step."""

        most: int

        def train_step(self, batch: Any) -> Any:
            most = self.most - int(batch[0] > 0)
            return solstice.replace(self, most=most), {"loss": batch.sum()}

        def eval_step(self, batch: Any) -> Any:
            return self, {"loss": batch.sum()}

        def check_batch(self, batch: Any) -> None:
            if batch[0] > self.most:
                raise solstice.DataError(f"more than {self.most}")

    ones, trainer = [np.ones(2, np.float32)] * 2, solstice.Trainer()
    with (
        pytest.warns(UserWarning, match="cannot be compiled"),
        pytest.raises(solstice.DataError, match="more than 3"),
    ):
        trainer.fit(Narrows(7), ones, [4 * ones[0]], num_epochs=4)
