"""A resumed run sees whether its data are those of the saved run, and says what is not."""

import re
import warnings
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice._sources import _identity
from solstice.callbacks import Checkpoint
from solstice.checkpoint import CheckpointError
from solstice.data import batches

pytest.importorskip("safetensors")

X = np.random.default_rng(0).normal(size=(43, 3)).astype(np.float32)
Y = np.arange(43)
STEPS = 9
"""In an epoch of batches of 5."""


class Sum(solstice.Experiment):
    total: jax.Array

    def train_step(self, batch):
        total = (1.5 * self.total + jnp.sum(batch[1]).astype(float)) % 1000
        return solstice.replace(self, total=total), {"loss": batch[0].mean()}

    def eval_step(self, batch):
        return self, {"loss": batch[0].mean()}


class KilledError(Exception):
    pass


class Dies(solstice.Callback):
    """Ends a run after what saves, at a step or, of the last of an epoch, at its end."""

    phase = solstice.Phase.SAVE

    def __init__(self, step):
        self.step = step

    def on_step_end(self, record):
        if record.mode == "train" and record.step == self.step and record.epoch_step % STEPS:
            raise KilledError

    def on_epoch_end(self, record):
        if record.mode == "train" and record.step == self.step:
            raise KilledError


def start():
    return Sum(jnp.zeros(()))


def fit(folder, train_ds, val_ds=None, *, trainer=None, **options):
    trainer = solstice.Trainer([Checkpoint(folder, every=1)], **(trainer or {}))
    options = {"resume": "last", **options}
    return float(trainer.fit(start(), train_ds, val_ds, **options).total)


def killed(folder, step, train_ds, val_ds=None, **options):
    trainer = solstice.Trainer([Checkpoint(folder, every=1), Dies(step)], **options)
    with pytest.raises(KilledError):
        trainer.fit(start(), train_ds, val_ds, num_epochs=3)


def ready(x=X, y=Y, size=5):
    return list(batches((x, y), size))


class Iterator:
    """An iterator with a state, over a list."""

    def __init__(self, data):
        self.data, self.index = data, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.index == len(self.data):
            raise StopIteration
        self.index += 1
        return self.data[self.index - 1]

    def state_dict(self):
        return {"index": self.index}

    def load_state_dict(self, state):
        self.index = state["index"]


class Older(Iterator):
    """A version that does not take the state of the newer."""

    def load_state_dict(self, state):
        self.index = state["position"]


Older.__qualname__ = "Iterator"


class Renamed(Iterator):
    """Its state is of another meaning."""

    def load_state_dict(self, state):
        self.index = state["index"] + 1


class Stateful:
    def __init__(self, data, kind=Iterator):
        self.data, self.kind = data, kind

    def __iter__(self):
        return self.kind(self.data)


def changed(array, place, value=7):
    array = array.copy()
    array[place] = value
    return array


def plain(data):
    return lambda: iter(data)


def one_more(x=X):
    return ready(np.concatenate([x, x[:13]]), np.concatenate([Y, Y[:13]]))


STEP, END = 4, STEPS
BOTH = (STEP, END)

LONGER = "an epoch had 9 batches, and has "
OTHER = "train_ds gives other batches than in the saved run"
CHECKSUM = "the arrays of train_ds are not those of the saved run: their checksum was "
STATE = "the place in train_ds is the state of a "

CHANGES = {
    "drop_last": (batches((X, Y), 5), lambda: batches((X, Y), 5, drop_last=True), BOTH,
        [LONGER + "8", "train_ds had drop_last=False, and has drop_last=True"]),
    "seed": (batches((X, Y), 5, shuffle=True), lambda: batches((X, Y), 5, shuffle=True, seed=1),
        BOTH, [OTHER, "train_ds had seed=0, and has seed=1"]),
    "batch size": (batches((X, Y), 5), lambda: batches((X, Y), 6), BOTH,
        [OTHER, LONGER + "8", "train_ds had batch_size=5, and has batch_size=6"]),
    "more examples": (batches((X[:41], Y[:41]), 5), lambda: batches((X, Y), 5), BOTH,
        ["train_ds had examples=41, and has examples=43", CHECKSUM]),
    "an example": (batches((X, Y), 5, shuffle=True),
        lambda: batches((changed(X, (31, 1)), Y), 5, shuffle=True), BOTH, [CHECKSUM]),
    "a label": (batches((X, Y), 5), lambda: batches((X, changed(Y, 42)), 5), BOTH, [CHECKSUM]),
    "more batches of a list": (ready(), one_more, BOTH, [LONGER + "12", CHECKSUM]),
    "an example of a list": (ready(), lambda: ready(changed(X, (40, 0))), BOTH, [CHECKSUM]),
    "the next of a list": (ready(), lambda: ready(changed(X, (22, 0))), (STEP,), [OTHER, CHECKSUM]),
    "the next of a function": (plain(ready()), lambda: plain(ready(changed(X, (22, 0)))), (STEP,),
        [OTHER]),
    "the last of a function": (plain(ready()), lambda: plain(ready(changed(X, (STEP * 5 - 1, 0)))),
        (STEP,), [OTHER]),
    "a function that ends before": (plain(ready()), lambda: plain(ready()[:3]), (STEP,), [OTHER]),
    "a function that ends there": (plain(ready()), lambda: plain(ready()[:4]), (STEP,), [OTHER]),
    "the last by its state": (Stateful(ready()),
        lambda: Stateful(ready(changed(X, (STEP * 5 - 1, 0)))), (STEP,), [OTHER]),
    "the next by its state": (Stateful(ready()), lambda: Stateful(ready(changed(X, (22, 0)))),
        (STEP,), [OTHER]),
    "a state into a list": (Stateful(ready()), ready, (STEP,),
        [STATE + "Iterator, and the data set that is given now takes no state"]),
    "a state into a function": (Stateful(ready()), lambda: plain(ready()), (STEP,),
        [STATE + "Iterator, and the data set that is given now takes no state"]),
    "a state into another iterator": (Stateful(ready()), lambda: Stateful(ready(), Renamed),
        (STEP,), [STATE + "Iterator, and the iterator is a Renamed now"]),
    "a stream into a list": (lambda: Iterator(ready() * 3), lambda: ready() * 3, (STEP,),
        ["the data set that is given now takes no state"]),
}  # fmt: skip


def test_numbers_in_batches_are_the_same_batches(tmp_path):
    ready_made = [(x[:, None], np.float32(y)) for x, y in zip(X, Y, strict=True)]
    killed(tmp_path, 4, ready_made)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(tmp_path, ready_made, num_epochs=1, strict_resume=True)


@pytest.mark.parametrize("name", CHANGES)
def test_what_has_changed_is_said_and_refused_if_asked(tmp_path, name):
    before, after, steps, sentences = CHANGES[name]
    before = before() if name == "a stream into a list" else before
    for step in steps:
        folder = tmp_path / str(step)
        killed(folder, step, before)
        more = {"max_steps": 2 * STEPS}
        with pytest.raises(CheckpointError, match=re.escape(sentences[0])):
            fit(folder, after(), strict_resume=True, **more)
        with pytest.warns(UserWarning, match="cannot be resumed exactly") as warned:
            fit(folder, after(), **more)
        for sentence in sentences:
            assert sentence in str(warned[0].message)


SAME = {
    "nothing": (batches((X, Y), 5, shuffle=True), batches((X, Y), 5, shuffle=True)),
    "64 bits": (batches((X, Y), 5), batches((X.astype(np.float64), Y.astype(np.int32)), 5)),
    "a list": (ready(), ready()),
    "JAX": (ready(), [jax.device_put(batch) for batch in ready()]),
    "batches into a list": (batches((X, Y), 5), ready()),
    "a list into a function": (ready(), plain(ready())),
    "a list into a state": (ready(), Stateful(ready())),
    "a function into a list": (plain(ready()), ready()),
    "a state": (Stateful(ready()), Stateful(ready())),
}


@lru_cache
def whole(shuffle=False):
    data = batches((X, Y), 5, shuffle=shuffle)
    return float(solstice.Trainer().fit(start(), data, num_epochs=3).total)


@pytest.mark.parametrize("step", [1, END, STEPS + 4])
@pytest.mark.parametrize("name", SAME)
def test_the_same_data_are_accepted(tmp_path, name, step):
    before, after = SAME[name]
    killed(tmp_path / "a", step, before, ready())
    resumed = fit(tmp_path / "a", after, ready(), num_epochs=3, strict_resume=True)
    assert resumed == whole(name == "nothing")


@pytest.mark.parametrize("limit", [5, 1, None])
@pytest.mark.parametrize("step", [3, 8])
def test_another_limit_is_another_epoch(tmp_path, limit, step):
    killed(tmp_path / "a", step, ready(), limit_train_batches=7)
    more = {"max_steps": 20, "strict_resume": True}
    with pytest.raises(CheckpointError, match=f"an epoch had 7 batches, and has {limit or 9}"):
        fit(tmp_path / "a", ready(), **more, trainer={"limit_train_batches": limit})
    fit(tmp_path / "a", ready(), **more, trainer={"limit_train_batches": 7})


REFUSED = {
    "list": ready,
    "function": lambda: plain(ready()),
    "Older": lambda: Stateful(ready(), Older),
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_a_state_is_of_no_use_the_batches_are_read_again(tmp_path, caplog, name):
    """The result is right, and what is said of it is true."""
    killed(tmp_path / "a", STEPS + 4, Stateful(ready()))
    caplog.clear()
    with pytest.warns(UserWarning, match="the place in train_ds is the state of a Iterator"):
        assert fit(tmp_path / "a", REFUSED[name](), num_epochs=3) == whole()
    said = caplog.text
    assert "state of its iterator" not in said
    assert "exactly" not in said
    assert ("at once" if name == "list" else "by reading 13 batches again") in said


# Validation


def resumed_with(folder, before, after, *, limits=(None, None)):
    for val_ds, limit, epochs in zip((before, after), limits, (1, 2), strict=True):
        trainer = {"limit_val_batches": limit}
        fit(folder, ready(), val_ds, num_epochs=epochs, strict_resume=True, trainer=trainer)


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        (ready(changed(X, 0)), "the arrays of val_ds are not those of the saved run"),
        (ready()[:4], "val_ds had 9 batches, and has 4"),
        (None, "there was a validation set, and there is none"),
    ],
)
def test_another_validation_set_is_refused(tmp_path, after, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        resumed_with(tmp_path / "a", ready(), after)


def test_another_limit_of_validation_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="val_ds had 3 batches, and has 9"):
        resumed_with(tmp_path / "a", ready(), ready(), limits=(3, None))


def test_a_validation_stream_that_begins_again_is_refused(tmp_path):
    streams = (iter(ready() * 2), iter(ready() * 2))
    with pytest.raises(
        CheckpointError, match="val_ds is an iterator, and starts from its first batch again"
    ):
        resumed_with(tmp_path / "a", *streams, limits=(2, 2))


# Checksums


@pytest.mark.parametrize("whole", [True, False])
def test_a_checksum_is_of_numbers_shapes_and_dtypes(monkeypatch, whole):
    if not whole:
        monkeypatch.setattr(_identity, "_WHOLE", 0)
    one = _identity.checksum((X, Y))
    assert one == _identity.checksum((X[::-1][::-1], Y.astype(np.int32)))
    assert one == _identity.checksum({"a": jnp.asarray(X), "b": Y, "text": "not a number"})
    others = [(X, Y[:-1]), (X.T, Y), (Y, X), (changed(X, (21, 1)), Y), (X, Y.astype(np.float32))]
    others += [[(X, Y), (X, Y)], (X.view(np.int32), Y), ()]
    assert len({one, *map(_identity.checksum, others)}) == 1 + len(others)


def test_of_what_is_large_both_ends_and_a_sample_are_read():
    size = _identity._WHOLE // 4 + 1
    array = np.zeros(size, np.float32)
    one = _identity.checksum(array)
    for place in (0, 4000, size // 2 + 1, size - 1):
        array[place] = 1
        is_seen = _identity.checksum(array) != one
        assert is_seen == (place != size // 2 + 1)
        array[place] = 0
    many = [np.full(64, i, np.int64) for i in range(9000)] + [array]
    one = _identity.checksum(many)
    many[8999] = changed(many[8999], 3)
    assert _identity.checksum(many) != one


def test_a_tensor_that_cannot_be_read_is_left_out():
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError

    assert _identity.checksum([X, Broken()]) == _identity.checksum([X])


def test_no_warning_where_nothing_is_known(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(tmp_path / "a", plain(ready()), plain(ready()), max_steps=END)
        fit(tmp_path / "a", plain(ready()), plain(ready()[1:]), num_epochs=2)
