"""Each epoch has its own batches: whatever in a data set counts epochs is given their number."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest

import solstice
from solstice import DataError
from solstice.callbacks import Checkpoint

pytest.importorskip("safetensors")


class Null(solstice.Experiment):
    def train_step(self, batch):
        return self, None

    def eval_step(self, batch):
        return self, {"first": batch[0]}


class Seen(solstice.Callback):
    """The first number of each batch, by epoch."""

    needs = ("batch",)

    def __init__(self, mode="train"):
        self.mode, self.epochs = mode, {}

    def on_step_end(self, record):
        if record.mode == self.mode:
            self.epochs.setdefault(record.epoch, []).append(int(record.batch[0]))


def orders(train_ds, num_epochs=3, **options):
    seen = Seen()
    solstice.Trainer([seen], **options).fit(Null(), train_ds, num_epochs=num_epochs)
    return list(seen.epochs.values())


def order(epoch, seed=0):
    return np.random.default_rng([seed, epoch]).permutation(12).tolist()


def batches_of(rows):
    return (np.full(2, row, np.float32) for row in rows)


EXPECTED = [order(epoch) for epoch in range(3)]


# Functions


class Callable:
    def __call__(self, epoch=0):
        return batches_of(order(epoch))

    def method(self, *, epoch):
        return batches_of(order(epoch))


def seeded(seed, epoch):
    return batches_of(order(epoch, seed))


def default(epoch=0):
    return batches_of(order(epoch))


def after_another(seed=0, epoch=None):
    return batches_of(order(epoch, seed))


def positional(seed=0, epoch=None, /):
    return batches_of(order(epoch, seed))


def required(number):
    return batches_of(order(number))


def keyword(*, epoch):
    return batches_of(order(epoch))


@functools.wraps(required)
def wrapped(*arguments):
    return required(*arguments)


FUNCTIONS = {
    "default": default,
    "keyword": keyword,
    "after another": after_another,
    "positional": positional,
    "required": required,
    "wrapped": wrapped,
    "lambda": lambda e: batches_of(order(e)),
    "lambda with a default": lambda epoch=7: batches_of(order(epoch)),
    "partial by name": functools.partial(seeded, seed=0),
    "partial by place": functools.partial(seeded, 0),
    "object": Callable(),
    "method": Callable().method,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_given_the_epoch_however_it_takes_it(name):
    assert orders(FUNCTIONS[name]) == EXPECTED


def test_what_is_not_the_epoch_is_left_alone():
    rows = [3, 1, 2]
    assert orders(lambda rows=rows: batches_of(rows)) == [rows] * 3
    assert orders(lambda *rows, **more: batches_of(rows or [5])) == [[5]] * 3
    assert orders(functools.partial(seeded, seed=0, epoch=2)) == [order(2)] * 3


@pytest.mark.parametrize(
    ("function", "needs", "line"),
    [
        (seeded, "`seed`", "`train_ds=lambda epoch: seeded(seed=..., epoch=epoch)`"),
        (lambda a, b: a, "`a` and `b`", "`train_ds=lambda epoch: f(a=..., b=...)`, with `epoch`"),
        (functools.partial(seeded, epoch=1), "`seed`", "f(seed=..., epoch=epoch)`"),
        (lambda a, epoch=0, /: a, "`a`", "f(..., epoch)`"),
        (lambda *, size: size, "`size`", "f(size=...)`"),
    ],
)
def test_a_function_that_needs_more_is_refused_before_anything_is_read(function, needs, line):
    with pytest.raises(DataError) as error:
        solstice.Trainer().fit(Null(), function)
    assert f"train_ds is a function that needs {needs}, and receives" in str(error.value)
    assert line in str(error.value)


# Samplers, as torch has them


class Sampler:
    """As a `DistributedSampler`: it holds the epoch until it is told another."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter(order(self.epoch))


class Loader:
    """Reads the rows of what is found at a path of attributes."""

    def __init__(self, path, counts=None):
        self._counts = Sampler() if counts is None else counts
        first, *rest = path.split(".")
        part = self._counts
        for name in reversed(rest):
            part = SimpleNamespace(**{name: part})
        setattr(self, first, part)

    def __iter__(self):
        return batches_of(self._counts)


PATHS = ["sampler", "batch_sampler", "batch_sampler.sampler", "batch_sampler.batch_sampler"]
PATHS += ["dataset", "dataset.dataset"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "given", ["itself", "a function that gives it", "a function that makes it"]
)
def test_what_a_loader_draws_its_rows_from_is_given_the_epoch(path, given):
    loader = Loader(path)
    data = {
        "itself": loader,
        "a function that gives it": lambda: loader,
        "a function that makes it": lambda: Loader(path),
    }
    assert orders(data[given]) == EXPECTED


def test_batches_that_a_function_makes_are_shuffled_for_each_epoch():
    arrays = np.arange(12, dtype=np.float32)
    made = orders(lambda: solstice.data.batches(arrays, 1, shuffle=True))
    assert made == orders(solstice.data.batches(arrays, 1, shuffle=True))
    assert len({tuple(rows) for rows in made}) == 3


def test_a_class_is_made_and_not_given_an_epoch():
    class Made(Sampler):
        def __iter__(self):
            return batches_of(order(self.epoch))

    assert orders(Made) == EXPECTED


# Keras


class Sequence:
    """As a Keras `PyDataset`, which shuffles when an epoch ends."""

    def __init__(self):
        self.rng, self.rows, self.calls = np.random.default_rng(0), list(range(12)), []

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return np.full(2, self.rows[index], np.float32)

    def on_epoch_begin(self):
        self.calls.append("begin")

    def on_epoch_end(self):
        self.calls.append("end")
        self.rng.shuffle(self.rows)


class Endless(Sequence):
    """As those of Keras 2 that read images: to iterate over them goes on after the epoch."""

    def __iter__(self):
        for index in range(100):
            yield self[index % 12]


def keras_orders(count):
    data, found = Sequence(), []
    for _ in range(count):
        found.append(list(data.rows))
        data.on_epoch_end()
    return found


@pytest.mark.parametrize("kind", [Sequence, Endless])
def test_a_keras_data_set_hears_of_each_epoch(kind):
    data = kind()
    assert orders(data) == keras_orders(3)
    assert data.calls == ["begin", "end"] * 3


def test_an_epoch_that_is_not_read_to_its_end_is_not_ended():
    class Stops(solstice.Callback):
        def on_step_end(self, record):
            if record.step == 15:
                raise solstice.Stop

    for trainer, options in [
        (solstice.Trainer(), {"max_steps": 15}),
        (solstice.Trainer([Stops()]), {"num_epochs": 2}),
    ]:
        data = Sequence()
        trainer.fit(Null(), data, **options)
        assert data.calls == ["begin", "end", "begin"]


@pytest.mark.parametrize("step", [12, 24, 29])
def test_a_keras_data_set_is_resumed_as_though_it_had_been_read(tmp_path, step):
    def run(**options):
        seen = Seen()
        saves = Checkpoint(tmp_path / "a", every=1)
        trainer = solstice.Trainer([seen, saves], limit_val_batches=2)
        trainer.fit(Null(), Sequence(), Sequence(), resume="last", strict_resume=True, **options)
        return [row for rows in seen.epochs.values() for row in rows], trainer.history.rows

    whole = [row for rows in keras_orders(4) for row in rows]
    run(max_steps=step)
    rest, history = run(num_epochs=4)
    assert rest == whole[step:]
    validated = [row["first"] for row in history if row["mode"] == "val" and row["step"] % 12 == 0]
    assert validated == [np.mean(rows[:2]) for rows in keras_orders(4)]


def test_the_hook_of_a_callback_is_not_taken_for_that_of_keras():
    class Both(Sequence, solstice.Callback):
        def on_epoch_end(self, record):
            self.calls.append(record.epoch)

    data = Both()
    with pytest.warns(UserWarning, match="on_epoch_begin is not a hook of solstice.Callback"):
        trainer = solstice.Trainer([data])
    trainer.fit(Null(), data, num_epochs=2)
    assert data.calls == [0, 1]


# Resuming: the epochs before are read again only where the number does not decide


@pytest.mark.parametrize("name", ["sampler", "dataset", "required", "made"])
def test_each_resumes_within_an_epoch(tmp_path, caplog, name):
    def run(**options):
        made = {"required": required, "made": lambda: Loader("sampler")}
        data = made[name] if name in made else Loader(name)
        seen = Seen()
        trainer = solstice.Trainer([seen, Checkpoint(tmp_path / "a", every=1)])
        trainer.fit(Null(), data, resume="last", strict_resume=True, **options)
        return [row for rows in seen.epochs.values() for row in rows]

    run(max_steps=17)
    assert run(num_epochs=3) == [row for rows in EXPECTED for row in rows][17:]
    # The loader may shuffle by a generator of its own, and the function remember what it made.
    read = 17 if name in ("dataset", "made") else 5
    assert f"exactly, by reading {read} batches again" in caplog.text
