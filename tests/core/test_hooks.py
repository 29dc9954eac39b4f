"""Hooks that the Trainer would not call, or could not, are refused before the first step."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import Callback, Stop, Trainer
from solstice.callbacks import Checkpoint, EarlyStopping, History


class Counter(solstice.Experiment):
    total: jnp.ndarray

    def train_step(self, batch):
        return solstice.replace(self, total=self.total + 1), {"mean": batch.mean()}

    def eval_step(self, batch):
        return self, {"mean": batch.mean()}


def counter():
    return Counter(jnp.zeros((), jnp.int32))


BATCHES = [np.full(2, value, np.float32) for value in range(6)]


def made(**members):
    return type("Mine", (Callback,), members)()


def hook(self, record):
    raise AssertionError("it is never called")


@pytest.mark.parametrize(
    ("name", "line", "mode"),
    [
        ("on_train_epoch_end", "def on_epoch_end(self, record):", "train"),
        ("on_epoch_ends", "def on_epoch_end(self, record):", None),
        ("on_train_start", "def on_fit_start(self, record):", "train"),
        ("on_train_batch_end", "def on_step_end(self, record):", "train"),
        ("on_validation_epoch_end", "def on_epoch_end(self, record):", "val"),
        ("on_validation_start", "def on_epoch_start(self, record):", "val"),
        ("on_test_batch_begin", "def on_step_start(self, record):", "test"),
        ("on_epoch_begin", "def on_epoch_start(self, record):", None),
        ("on_batch_end", "def on_step_end(self, record):", None),
        ("on_train_end", "def on_fit_end(self, record):", "train"),
        ("on_fit_begin", "def on_fit_start(self, record):", None),
        ("on_evaluate", "def on_epoch_end(self, record):", "val"),
        ("on_save_checkpoint", "def state_dict(self):", None),
        ("on_step", "def on_step_end(self, record):", None),
        ("on_epoc_end", "def on_epoch_end(self, record):", None),
        ("on_exeption", "def on_exception(self, record, error):", None),
    ],
)
def test_a_hook_of_another_name_is_refused_with_ours(name, line, mode):
    with pytest.raises(TypeError, match="is not a hook") as caught:
        Trainer([made(**{name: hook})])
    text = str(caught.value)
    assert all(words in text for words in (f"Mine.{name}", f"`{line}`", f"`_{name}`"))
    assert (f'record.mode == "{mode}"' in text) == (mode is not None)


def test_a_helper_that_begins_as_a_hook_does_is_refused_with_the_list():
    with pytest.raises(TypeError, match=r"The hooks are on_fit_start, .*on_exception"):
        Trainer([made(on_improvement=hook)])
    Trainer([made(_on_improvement=hook)])


def test_methods_and_settings_that_are_nearly_ours_are_named():
    for members, word in [
        ({"epoch_end": hook}, "def on_epoch_end"),
        ({"mesure": hook}, "def measure"),
        ({"need": ("outputs",)}, "`needs`"),
        ({"evry": 100}, "`every`"),
        ({"can_stops": False}, "`can_stop`"),
        ({"has_side_effect": True}, "`has_side_effects`"),
    ]:
        with pytest.warns(UserWarning, match=word):
            Trainer([made(**members)])


def test_what_is_set_on_the_instance_is_looked_at_too():
    callback = made()
    callback.evry = 3
    with pytest.warns(UserWarning, match="`every`"):
        Trainer([callback])
    callback = made()
    callback.on_train_epoch_end = print
    with pytest.warns(UserWarning, match="def on_epoch_end"):
        Trainer([callback])


def test_what_belongs_to_another_base_is_no_error():
    """Such as a callback of Keras and of Solstice in one, and a watcher of files."""

    class Watcher:
        def on_modified(self, event):
            pass

    class Keras:
        def on_train_batch_end(self, batch, logs=None):
            pass

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer([type("Both", (Callback, Watcher), {})()])
    with pytest.warns(UserWarning, match="def on_step_end"):
        Trainer([type("Both", (Callback, Keras), {})()])


def test_usual_words_are_nobodys_mistake():
    words = {"step": hook, "log": hook, "start": hook, "end": hook, "train": hook, "mode": "min"}
    callback = made(**words, monitor="val/loss", on_gpu=True)
    callback.on_improvement = print  # a function that the user gave it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer([callback])


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        ("on_step_end", lambda self: None, "must take record"),
        ("on_epoch_end", lambda self, record, logs: None, "must take record"),
        ("on_exception", lambda self, record: None, "must take record and error"),
        ("measure", lambda self: {}, "must take record"),
        ("state_dict", lambda self, record: {}, "must take nothing but self"),
        ("load_state_dict", lambda self: None, "must take state"),
        ("on_fit_start", None, "must be a method"),
    ],
)
def test_a_hook_that_cannot_be_called_is_refused(name, wrong, words):
    with pytest.raises(TypeError, match=rf"Mine\.{name} {words}.*`def {name}\(self"):
        Trainer([made(**{name: wrong})])


def test_a_hook_that_would_never_run_is_refused():
    async def waits(self, record):
        pass

    def yields(self, record):
        yield

    for method, words in [(waits, "is `async`"), (yields, "has a `yield`")]:
        with pytest.raises(TypeError, match=f"Mine.on_epoch_end {words}"):
            Trainer([made(on_epoch_end=method)])


def test_a_hook_may_take_more_than_it_needs():
    Trainer(
        [
            made(on_step_end=lambda self, record, *more: None),
            made(on_step_end=lambda self, *given: None),
            made(on_step_end=lambda self, r, extra=None: None),
            made(on_step_end=staticmethod(lambda record: None)),
            made(on_exception=lambda self, *given, **more: None),
        ]
    )


def test_a_hook_that_is_set_on_an_instance_is_called():
    seen = []
    callback = Callback()
    callback.on_epoch_end = lambda record: seen.append(record.mode)
    Trainer([callback]).fit(counter(), BATCHES, BATCHES)
    assert seen == ["train", "val"]


def test_callbacks_added_to_a_trainer_are_looked_at_when_it_runs():
    trainer = Trainer()
    trainer.callbacks.append(made(on_train_end=hook))
    with pytest.raises(TypeError, match="is not a hook"):
        trainer.fit(counter(), BATCHES)


class Promises(Callback):
    """At the third step it raises, although it promised not to."""

    can_stop = False

    def __init__(self, error, hook="on_step_end"):
        self.error = error
        self.when = hook

    def on_step_end(self, record):
        if self.when == "on_step_end" and record.step == 3:
            raise self.error


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)])
def test_whoever_raises_against_a_promise_is_heard(error):
    trainer = Trainer([Promises(error)], steps_per_call=4)
    with pytest.raises(type(error)) as caught:
        trainer.fit(counter(), BATCHES)
    assert caught.value is error
    assert int(trainer.experiment.total) == 4  # of the end of the call, and said so
    assert int(error.experiment.total) == 4
    assert "after step 4" in error.__notes__[-1]


def test_beside_one_that_may_stop_it_is_the_very_step():
    class May(Callback):
        def on_step_end(self, record):
            pass

    trainer = Trainer([Promises(ValueError("mine")), May()], steps_per_call=4)
    with pytest.raises(ValueError, match="mine"):
        trainer.fit(counter(), BATCHES)
    assert int(trainer.experiment.total) == 3


@pytest.mark.parametrize("name", ["on_step_start", "on_step_end"])
@pytest.mark.parametrize("may_go_back", [False, True])
def test_a_stop_against_a_promise_is_named(name, may_go_back):
    def stops(self, record):
        if record.step == 3:
            raise Stop("enough")

    others = [made(on_step_end=lambda self, record: None)] if may_go_back else []
    trainer = Trainer([made(**{name: stops}, can_stop=False), *others], steps_per_call=4)
    with pytest.raises(RuntimeError, match=rf"Mine\.{name} asked to stop.*can_stop = False"):
        trainer.fit(counter(), BATCHES)
    assert int(trainer.experiment.total) in (3, 4)


@pytest.mark.parametrize("name", ["on_fit_start", "on_step_end", "on_epoch_end", "measure"])
def test_whose_stop_iteration_it_was_is_said(name):
    def exhausted(self, record):
        next(iter(()))

    reader = made(on_step_end=lambda self, record: None, needs=("metrics",))
    with pytest.raises(RuntimeError, match=rf"Mine\.{name} raised StopIteration"):
        Trainer([made(**{name: exhausted}), reader]).fit(counter(), BATCHES)


def test_a_stop_iteration_in_a_step_or_a_check_is_said():
    class Exhausted(Counter):
        def check_batch(self, batch):
            next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration") as caught:
        Trainer().fit(Exhausted(jnp.zeros((), jnp.int32)), BATCHES)
    assert any("Exhausted.check_batch" in note for note in caught.value.__notes__)


def refuses(record):
    raise OSError("the disk is gone")


@pytest.mark.parametrize("fails", ["path", "structure", "callback", "data"])
def test_a_run_that_does_not_begin_leaves_the_one_before(fails, tmp_path):
    mine = History(every=1)
    saver = Checkpoint(tmp_path / "a")
    trainer = Trainer([mine, saver])
    trainer.fit(counter(), BATCHES, num_epochs=2)
    rows, experiment = list(mine.rows), trainer.experiment
    given, ds, resume = counter(), BATCHES, "last"
    if fails == "path":
        resume = tmp_path / "nowhere"
    elif fails == "structure":
        given = Counter(jnp.zeros(3, jnp.int32))
    elif fails == "data":
        ds = []
    else:
        late = Callback()
        late.on_fit_start = refuses
        trainer.callbacks.append(late)
    with pytest.raises((ValueError, OSError, solstice.checkpoint.CheckpointError)):
        trainer.fit(given, ds, num_epochs=4, resume=resume)
    assert trainer.history is mine
    assert mine.rows == rows
    assert trainer.experiment is experiment


def test_a_run_that_ends_by_an_error_later_has_its_own_history():
    trainer = Trainer()
    trainer.fit(counter(), BATCHES, num_epochs=3)

    def breaks_off():
        yield from BATCHES[:2]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk"):
        trainer.fit(counter(), breaks_off)
    assert trainer.history.rows == []
    assert int(trainer.experiment.total) == 2


def test_what_early_stopping_refuses_leaves_the_history_too():
    trainer = Trainer([EarlyStopping("val/mean")])
    trainer.fit(counter(), BATCHES, BATCHES)
    rows = list(trainer.history.rows)
    with pytest.raises(ValueError, match="validation"):
        trainer.fit(counter(), BATCHES)
    assert trainer.history.rows == rows


class Rows(solstice.loggers.Logger):
    """A logger with one of its two methods misspelt."""

    def open(self, start):
        pass

    def writes(self, row):
        raise AssertionError("it is never called")


def test_a_logger_that_would_lose_its_rows_is_refused():
    with pytest.raises(
        TypeError, match=r"Rows does not define `write`.*`def write\(self, row\):`.*`writes`"
    ):
        Trainer([Rows()])


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [("every", None, 1), ("every", 1, 2), ("needs", (), ("outputs",)), ("can_stop", True, False)],
)
@pytest.mark.parametrize("when", ["on_fit_start", "load_state_dict", "on_epoch_end"])
def test_what_is_read_once_must_not_change(name, before, now, when, tmp_path):
    def changes(self, given):
        setattr(self, name, now)

    members = {name: before, when: changes, "on_step_end": hook if before is None else noop}
    kind = type("Mine", (Callback,), {**members, "state_dict": lambda self: {"a": 1}})

    def run_and_resume():
        for num_epochs in (1, 3):
            trainer = Trainer([kind(), Checkpoint(tmp_path)])
            trainer.fit(counter(), BATCHES, num_epochs=num_epochs, resume="last")

    with pytest.raises(TypeError, match=rf"Mine\.{name} was .* and is .*set it in `__init__`"):
        run_and_resume()


def noop(self, record):
    pass


def test_settings_may_change_before_a_run():
    callback = made(every=None, on_step_end=noop)
    trainer = Trainer([callback])
    callback.every = 2
    trainer.fit(counter(), BATCHES)
    callback.every = 3
    trainer.fit(counter(), BATCHES)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("training_step", "write `train_step`"),
        ("validation_step", "validation measures by `eval_step`"),
        ("test_step", "`trainer.test` measures by `eval_step`"),
        ("configure_optimizers", "hold the optimiser in a field"),
        ("predict_steps", "did you mean `predict_step`"),
        ("chek_batch", "did you mean `check_batch`"),
        ("set_up", "did you mean `setup`"),
        ("on_train_epoch_end", r"hooks are methods of a `solstice\.Callback`"),
    ],
)
def test_a_method_of_an_experiment_that_is_never_called_is_named(name, words):
    with pytest.warns(UserWarning, match=rf"Mine\.{name} is never called.*{words}"):
        type("Mine", (Counter,), {name: hook})


def test_usual_methods_of_an_experiment_are_nobodys_mistake():
    names = ["train", "test", "predict", "loss", "step", "forward", "_training_step", "params"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        type("Mine", (Counter,), dict.fromkeys(names, hook))


def test_hooks_are_called_only_in_the_modes_of_a_callback():
    def note(name):
        def method(self, record, *error):
            self.seen.append((name, record.mode))

        return method

    names = [name for name in vars(Callback) if name.startswith("on_")]

    def recorder(**attributes):
        callback = made(**{name: note(name) for name in names}, needs=("metrics",), **attributes)
        callback.seen = []
        return callback

    every = recorder()
    some = [recorder(modes=[mode]) for mode in ("train", "val", "test", "predict")]
    trainer = Trainer([every, *some])

    def fails():
        yield BATCHES[0]
        raise OSError("gone")

    exp = trainer.fit(counter(), BATCHES, BATCHES[:2])
    trainer.test(exp, BATCHES[:2])
    with pytest.raises(NotImplementedError):
        next(trainer.predict(exp, BATCHES))
    for run in (trainer.fit, trainer.validate):
        with pytest.raises(OSError, match="gone"):
            run(exp, fails())
    assert {mode for _, mode in every.seen} == {"train", "val", "test", "predict"}
    for callback, mode in zip(some, ("train", "val", "test", "predict"), strict=True):
        assert callback.seen == [moment for moment in every.seen if moment[1] == mode]


def test_metrics_of_other_modes_stay_with_their_readers():
    """A reader gets the metrics since its last call: a moment that it does not hear is no call."""
    seen = []

    def reads(self, record):
        seen.append((self.modes, record.mode, record.metrics["mean"]))

    readers = [made(on_step_end=reads, needs=("metrics",), every=2, modes=("train",))]
    readers.append(made(on_step_end=reads, needs=("metrics",), every=2, modes=("val",)))
    Trainer(readers).fit(counter(), BATCHES[:4], BATCHES[2:])
    assert seen == [
        (("train",), "train", 0.5),
        (("train",), "train", 2.5),
        (("val",), "val", 2.5),
        (("val",), "val", 4.5),
    ]


def test_metrics_are_not_read_in_other_modes():
    computed = []

    class Noted(solstice.Metrics):
        mean: jnp.ndarray

        def merge(self, other):
            return Noted(self.mean + other.mean)

        def compute(self):
            computed.append(isinstance(self.mean, np.ndarray))
            return {"mean": self.mean}

    class Notes(Counter):
        def eval_step(self, batch):
            return self, Noted(batch.mean())

    def evaluate(modes):
        computed.clear()
        Trainer(
            [made(on_step_end=lambda self, record: None, needs=("metrics",), modes=modes)]
        ).test(Notes(jnp.zeros(())), BATCHES)
        return len(computed)

    assert evaluate(("train",)) < evaluate(("test",))


def test_measure_is_of_training():
    measures = made(measure=lambda self, record: {"one": 1.0}, modes=("val",))
    trainer = Trainer([measures])
    trainer.fit(counter(), BATCHES, BATCHES)
    assert "train/one" not in trainer.history.names()


@pytest.mark.parametrize(
    ("modes", "error", "words"),
    [
        ("train", TypeError, r'write `modes = \("train",\)`'),
        (None, TypeError, r'must be names, such as \("train",\); it is None'),
        (("train", "validation"), ValueError, r"\['validation'\] is not one of \['train', 'val',"),
        ((["val"],), ValueError, r"\[\['val'\]\] is not one of"),
        ((), ValueError, "is empty, so no hook would be called"),
    ],
)
def test_wrong_modes_are_refused(modes, error, words):
    with pytest.raises(error, match=f"Mine.modes.*{words}"):
        Trainer([made(modes=modes)])


def test_wrong_processes_are_refused():
    for processes in ("lead", 0, ("first",)):
        with pytest.raises(ValueError, match=r"Mine.processes.* is not one of \['first', 'all'\]"):
            Trainer([made(processes=processes)])


def test_a_mode_that_means_modes_is_named():
    for mode in ("train", ("val", "test"), ["validation"]):
        with pytest.warns(UserWarning, match="write `modes`"):
            Trainer([made(mode=mode)])


def test_modes_that_change_within_a_run_are_refused():
    def changes(self, record):
        self.modes = ("val",)

    with pytest.raises(TypeError, match=r"Mine\.modes was \('train',\).*is \('val',\)"):
        Trainer([made(on_epoch_end=changes, modes=("train",))]).fit(
            counter(), BATCHES, num_epochs=2
        )
