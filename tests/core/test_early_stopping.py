"""EarlyStopping against a plain reading of its documentation."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import solstice
from solstice import Callback, Record, Stop, Trainer
from solstice.callbacks import EarlyStopping, Monitor


class Mean(solstice.Experiment):
    total: jax.Array

    def train_step(self, batch):
        return solstice.replace(self, total=self.total + 1), {"loss": jnp.mean(batch)}

    def eval_step(self, batch):
        return self, {"loss": jnp.mean(batch), "accuracy": 1 - jnp.mean(batch)}


def epochs_of(values):
    """A data set whose epochs have the losses `values`, one batch each."""
    return lambda epoch: [np.full(2, values[epoch], np.float32)]


def fit(callback, values, split="val"):
    """How many epochs a fit had whose losses in `split` are `values`."""
    data = {"train_ds": epochs_of([0.0] * len(values)), "val_ds": epochs_of([0.0] * len(values))}
    data[f"{split}_ds"] = epochs_of(values)
    trained = solstice.Trainer([callback]).fit(Mean(jnp.zeros(())), **data, num_epochs=len(values))
    return int(trained.total)


def plainly(values, mode, patience, min_delta):
    """Epochs taken, best value and its epoch."""
    best = best_epoch = None
    waited = 0
    for epoch, value in enumerate(values):
        signed = value if mode == "min" else -value
        if not math.isnan(value) and (best is None or signed < best - min_delta):
            best, best_epoch, waited = signed, epoch, 0
            continue
        waited += 1
        if waited == patience:
            break
    best = best if best is None or mode == "min" else -best
    return epoch + 1, best, best_epoch


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("val/loss", "min"),
        ("val/l2_error", "min"),
        ("val/perplexity", "min"),
        ("val/RMSE", "min"),
        ("val/mae", "min"),
        ("val/kl", "min"),
        ("val/accuracy", "max"),
        ("val/f1_macro", "max"),
        ("val/r2", "max"),
        ("val/fidelity", "max"),
        ("train/maes_found", "max"),
    ],
)
def test_the_name_of_a_metric_says_what_is_better(tmp_path, name, mode):
    assert EarlyStopping(name).mode == mode
    assert solstice.callbacks.Checkpoint(tmp_path, monitor=name).mode == mode
    other = {"min": "max", "max": "min"}[mode]
    assert EarlyStopping(name, mode=other).mode == other


def test_a_rising_accuracy_does_not_stop_a_run():
    """`Mean` gives 1 less the mean of the batch."""
    assert fit(EarlyStopping("val/accuracy", patience=1), [0.5, 0.4, 0.3, 0.2]) == 4
    assert fit(EarlyStopping("val/accuracy", patience=1), [0.5, 0.6, 0.7, 0.8]) == 2


losses = st.one_of(st.integers(-4, 4).map(float), st.just(math.nan))
rules = {
    "values": st.lists(losses, min_size=1, max_size=8),
    "mode": st.sampled_from(["min", "max"]),
    "patience": st.integers(1, 3),
    "min_delta": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
}


@settings(max_examples=60, deadline=None)
@given(**rules, split=st.sampled_from(["train", "val"]))
def test_it_stops_where_its_documentation_says(values, mode, patience, min_delta, split):
    early = EarlyStopping(f"{split}/loss", mode=mode, patience=patience, min_delta=min_delta)
    taken = fit(early, values, split)
    assert (taken, early.best, early.best_epoch) == plainly(values, mode, patience, min_delta)


def test_nan_is_never_the_best():
    early = EarlyStopping("val/loss", patience=2)
    assert fit(early, [math.nan, 5.0, math.nan, 4.0, math.nan, math.nan, 0.0]) == 6
    assert (early.best, early.best_epoch) == (4.0, 3)


def test_a_run_of_nan_alone_stops_without_a_best():
    early = EarlyStopping("val/loss", patience=3)
    assert fit(early, [math.nan] * 5) == 3
    assert early.best is None
    assert early.best_epoch is None


def test_the_validation_of_the_last_training_epoch_is_whole():
    class Val(solstice.Callback):
        def on_epoch_end(self, record):
            if record.mode == "val":
                self.metrics = record.metrics

    val = Val()
    early = EarlyStopping("train/loss", patience=1)
    trainer = solstice.Trainer([early, val])
    train_ds, val_ds = epochs_of([1.0, 2.0, 0.0]), epochs_of([7.0, 8.0, 9.0])
    trained = trainer.fit(Mean(jnp.zeros(())), train_ds, val_ds, num_epochs=3)
    assert trained.total == 2
    assert val.metrics == {"loss": 8.0, "accuracy": -7.0}


def test_a_missing_metric_is_told_with_those_there_are():
    with pytest.raises(KeyError) as error:
        fit(EarlyStopping("val/f1"), [1.0, 2.0])
    for part in ("val/f1", "val/loss", "val/accuracy"):
        assert part in str(error.value)


def test_val_without_a_validation_set_is_an_error_before_training():
    trainer = solstice.Trainer([EarlyStopping("val/loss")])
    with pytest.raises(ValueError, match="'val/loss' and there is no validation: give `fit` a val"):
        trainer.fit(Mean(jnp.zeros(())), epochs_of([1.0]))
    assert trainer.experiment.total == 0


def test_train_without_a_validation_set_is_none():
    trained = solstice.Trainer([EarlyStopping("train/loss", patience=1)]).fit(
        Mean(jnp.zeros(())), epochs_of([1.0, 1.0, 1.0]), num_epochs=3
    )
    assert trained.total == 2


def test_each_fit_starts_anew():
    early = EarlyStopping("val/loss", patience=2)
    assert [fit(early, [1.0, 2.0, 3.0, 4.0]) for _ in range(2)] == [3, 3]


def test_testing_and_validating_do_not_touch_the_best_of_a_fit():
    early = EarlyStopping("val/loss")
    fit(early, [3.0, 1.0, 2.0])
    trainer = solstice.Trainer([early])
    trainer.test(Mean(jnp.zeros(())), [np.zeros(2, np.float32)])
    trainer.validate(Mean(jnp.zeros(())), [np.zeros(2, np.float32)])
    assert (early.best, early.best_epoch) == (1.0, 1)


@settings(max_examples=60, deadline=None)
@given(**rules, cut=st.integers(0, 8))
def test_its_state_goes_through_json_and_back(values, mode, patience, min_delta, cut):
    def make():
        return EarlyStopping("val/loss", mode=mode, patience=patience, min_delta=min_delta)

    def tell(callback, epoch, value):
        try:
            callback.on_epoch_end(
                Record(mode="val", epoch=epoch, epoch_step=1, given={"metrics": {"loss": value}})
            )
        except Stop:
            return "stop"
        return "on"

    whole, resumed = make(), make()
    for epoch, value in enumerate(values):
        if epoch == cut:
            state = json.loads(json.dumps(resumed.state_dict()))
            resumed = make()
            resumed.load_state_dict(state)
        assert tell(whole, epoch, value) == tell(resumed, epoch, value)
        assert whole.state_dict() == resumed.state_dict()


@pytest.mark.parametrize("monitor", ["loss", "", "val/", "test/loss", "/loss", "predict/x"])
def test_a_monitor_without_its_mode_is_told_how_to_be_named(monitor):
    with pytest.raises(ValueError, match='monitor must be named as in "train/loss" or "val/loss"'):
        EarlyStopping(monitor)


@pytest.mark.parametrize(
    ("monitor", "meant"),
    [
        ("accuracy", "val/accuracy"),
        ("val_loss", "val/loss"),
        ("valid_loss", "val/loss"),
        ("validation_loss", "val/loss"),
        ("training_loss", "train/loss"),
        ("value_error", "val/value_error"),
    ],
)
def test_a_name_of_another_library_is_answered_with_ours(monitor, meant):
    with pytest.raises(ValueError, match=f"Write '{meant}'$"):
        EarlyStopping(monitor)
    EarlyStopping(meant)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "auto"}, 'mode must be "min" or "max"; it is \'auto\''),
        ({"patience": 0}, "patience must be 1 or more epochs; it is 0"),
        ({"min_delta": -0.1}, "min_delta must be 0 or more; it is -0.1"),
        ({"min_delta": math.nan}, "min_delta must be 0 or more; it is nan"),
    ],
)
def test_an_argument_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EarlyStopping(**options)


def test_the_reason_of_the_stop_is_told():
    early = EarlyStopping("val/loss", patience=1)
    record = Record(mode="val", epoch_step=1, has_validation=True, given={"metrics": {"loss": 1.5}})
    early.on_epoch_end(record)
    with pytest.raises(Stop, match=r"val/loss has not improved on 1\.5 in 1 validation"):
        early.on_epoch_end(record)


@pytest.mark.parametrize("num_epochs", [3, None])
def test_a_run_that_a_callback_stops_says_where_and_why(caplog, num_epochs):
    data = epochs_of([2.0, 1.0, 1.5, 0.0])
    trainer = Trainer([EarlyStopping("val/loss", patience=1)])
    limits = {"num_epochs": num_epochs, "max_steps": 9}
    trainer.fit(Mean(jnp.zeros(())), data, data, **limits)
    why = "val/loss has not improved on 1 in 1 validation"
    assert trainer.stopped == why
    of = "" if num_epochs is None else " of 3"
    assert caplog.messages == [f"stopped after step 3, in epoch 3{of}: {why}"]
    trainer.fit(Mean(jnp.zeros(())), data, data, num_epochs=2)
    assert trainer.stopped is None


def test_a_stop_without_a_reason_is_said_too(caplog):
    class Once(Callback):
        def on_step_end(self, record):
            raise Stop

    trainer = Trainer([Once()])
    trainer.fit(Mean(jnp.zeros(())), epochs_of([0.0] * 2), num_epochs=2)
    assert trainer.stopped == ""
    assert caplog.messages == ["stopped after step 1, in epoch 1 of 2, as a callback asked"]


def test_an_evaluation_by_a_callback_leaves_early_stopping_alone():
    early = EarlyStopping("val/loss", patience=2)

    class Evaluates(Callback):
        modes = ("train",)

        def on_epoch_end(self, record):
            trainer.validate(record.experiment, [np.float32([9])])

    class Rises(solstice.Experiment):
        step: jnp.ndarray

        def train_step(self, batch):
            return solstice.replace(self, step=self.step + 1), {"loss": 0.0}

        def eval_step(self, batch):
            return self, {"loss": self.step + batch.mean()}

    trainer = Trainer([Evaluates(), early])
    batch = np.float32([0])
    exp = trainer.fit(Rises(jnp.zeros(())), [batch], [batch], num_epochs=9)
    assert (early.best, int(exp.step)) == (1.0, 3)


@given(st.lists(st.floats(allow_nan=True)), st.sampled_from(["min", "max"]))
def test_a_monitor_finds_the_best_value_and_ranks_all(values, mode):
    monitor, best = Monitor("val/loss", mode), None
    for value in values:
        best = value if monitor.improves(value, best) else best
    numbers = [value for value in values if not math.isnan(value)]
    assert best == ((min if mode == "min" else max)(numbers) if numbers else None)
    assert sorted(numbers, key=monitor.rank) == sorted(numbers, reverse=mode == "max")


def test_a_monitor_has_values_only_at_the_end_of_its_epochs_in_fit():
    monitor = Monitor("val/loss")
    moment = {"mode": "val", "epoch_step": 1, "has_validation": True}
    given = {"metrics": {"loss": np.float32(0.5), "matrix": np.ones((2, 2))}}
    assert monitor.value(Record(**moment, given=given)) == 0.5
    for other in ({"mode": "train"}, {"epoch_step": 0}, {"has_validation": False}):
        assert monitor.value(Record(**moment | other, given=given)) is None
    with pytest.raises(KeyError, match="did you mean 'val/matrix'"):
        Monitor("val/matrx").value(Record(**moment, given=given))
    with pytest.raises(ValueError, match="an array of 2 axes"):
        Monitor("val/matrix").value(Record(**moment, given=given))
    with pytest.raises(ValueError, match="Mine monitors 'val/loss' and there is no validation"):
        monitor.check(Record(mode="train"), "Mine")
    monitor.check(Record(mode="val"))
    with pytest.raises(ValueError, match="named as in"):
        Monitor("test/loss")
