"""Several data sets where one is taken: the error says where the others go."""

import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import DataError, Trainer
from solstice.data import Masked, batches

X = np.arange(8, dtype=np.float32)
PAIR = (X, X + 1)


class Mean(solstice.Experiment):
    def train_step(self, batch):
        return self, {"loss": jnp.mean(batch[0])}

    def eval_step(self, batch):
        return self.train_step(batch)

    def predict_step(self, batch):
        return batch[0]


def reads():
    yield PAIR


class Loader:
    """As a torch `DataLoader`: iterable, and nothing more."""

    def __iter__(self):
        return reads()


SEVERAL = {
    "dict of Batches": lambda: {"day": batches(PAIR, 4), "night": batches(PAIR, 4)},
    "list of Batches": lambda: [batches(PAIR, 4), batches(PAIR, 4)],
    "tuple of Batches": lambda: (batches(PAIR, 4), batches(PAIR, 4)),
    "dict of one": lambda: {"day": batches(PAIR, 4)},
    "dict of lists": lambda: {"day": [PAIR], "night": [PAIR, PAIR]},
    "dict of loaders": lambda: {"day": Loader(), "night": Loader()},
    "list of loaders": lambda: [Loader(), Loader()],
    "list of functions": lambda: [reads, reads],
    "tuple of generators": lambda: (reads(), reads()),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_validation_sets_are_refused_with_the_line_to_write(kind):
    val_ds = SEVERAL[kind]()
    with pytest.raises(DataError, match="must be one data set") as caught:
        Trainer().fit(Mean(), [PAIR], val_ds)
    text = str(caught.value)
    first, last = ("'day'", "'night'") if isinstance(val_ds, dict) else ("0", "1")
    last = "'day'" if len(val_ds) == 1 else last
    assert f"a {type(val_ds).__name__} of {len(val_ds)} data sets" in text
    assert f"`val_ds=val_ds[{first}]`" in text
    assert f"`self.trainer.validate(record.experiment, val_ds[{last}])`" in text
    assert "`AlsoOn` in docs/howto/callbacks.md" in text


@pytest.mark.parametrize(
    "val_ds", [{"day": PAIR, "night": PAIR}, (PAIR, PAIR), {"day": [PAIR], "night": [PAIR, PAIR]}]
)
def test_several_sets_of_arrays_are_those_like_the_training_set(val_ds):
    with pytest.raises(DataError, match=r"2 data sets.*validate\(.*\], batch_size=4\)`"):
        Trainer().fit(Mean(), PAIR, val_ds, batch_size=4)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda ds: Trainer().fit(Mean(), ds), "`train_ds=train_ds['day']`"),
        (lambda ds: Trainer().test(Mean(), ds), r"`trainer.test\(exp, test_ds\['day'\]\)`"),
        (lambda ds: Trainer().validate(Mean(), ds), r"`trainer.validate\(exp, val_ds\['day'\]\)`"),
        (lambda ds: list(Trainer().predict(Mean(), ds)), r"`ds=ds\['day'\]`"),
    ],
)
def test_wherever_a_data_set_is_taken_it_is_one(call, line):
    with pytest.raises(DataError, match=line.replace("[", r"\[") if "\\" not in line else line):
        call(SEVERAL["dict of Batches"]())


@pytest.mark.parametrize(
    ("train_ds", "val_ds", "batch_size"),
    [
        ([PAIR], [PAIR, PAIR], None),
        ([PAIR], (PAIR, PAIR), None),
        ([(PAIR, X)], [(PAIR, X)], None),
        ([{0: X}], [{0: X}, {0: X}], None),
        ([[PAIR, PAIR]], [[PAIR, PAIR]], None),
        (PAIR, PAIR, 4),
        ((PAIR, X), (PAIR, X), 4),
        ((PAIR, PAIR), (PAIR, PAIR), 4),
        ({0: X}, {0: X}, 4),
        ({0: PAIR, 1: PAIR}, {0: PAIR, 1: PAIR}, 4),
        ({0: [X, X]}, {0: [X, X]}, 4),
        ({0: [PAIR, PAIR]}, {0: [PAIR, PAIR]}, 4),
        (Masked(PAIR, X > 1), Masked(PAIR, X > 1), 4),
    ],
)
def test_what_is_one_data_set_stays_one(train_ds, val_ds, batch_size):
    class Counts(Mean):
        def train_step(self, batch):
            return self, {"loss": jnp.zeros(())}

    Trainer().fit(Counts(), train_ds, val_ds, batch_size=batch_size)


def test_text_beside_features_is_no_data_set():
    batch = {"x": X, "name": ["a"] * 8}
    Trainer().fit(Mean(), [{0: X}], [{0: X}])
    with pytest.raises(DataError, match="examples, not batches"):
        Trainer().fit(Mean(), [{0: X}], batch)
