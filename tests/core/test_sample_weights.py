"""Batches with the weight of each example, in every ready-made Experiment and in a Task."""

from contextlib import nullcontext as does_not_raise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ready_made import (
    KINDS,
    LABELS,
    NUMBERS,
    ONE,
    PIXELS,
    SGD,
    TOKENS,
    N,
    X,
    Y,
    binary,
    classes,
    close,
    computed,
    gan,
    labels,
    noiseless,
    regression,
    rows,
    trained,
)

import solstice
from solstice import DataError, experiments, metrics
from solstice.data import Masked, batches, pad_batch, weights_of

pytestmark = pytest.mark.slow  # numbers that hardly depend on the versions

RNG = np.random.default_rng(1)
WEIGHTS = RNG.multinomial(N, np.full(N, 1 / N)).astype(np.float32)
REPEATED = np.arange(N).repeat(WEIGHTS.astype(int))
SHARES = RNG.random(N, np.float32) + 0.1
EXAMPLES = {"num_tokens", "num_nan", "num_infinite", "num_out_of_range"}
each_kind = pytest.mark.parametrize("kind", KINDS)


def kind_of(kind, **options):
    make, batch = KINDS[kind]
    return (noiseless if kind == "vae" else make)(**options), batch


def with_weights(batch, weights):
    """`(x, y, weights)` where a batch has parts."""
    return (*batch, weights) if isinstance(batch, tuple) else Masked(batch, weights)


def but_counts(values):
    return {name: value for name, value in values.items() if name not in EXAMPLES}


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 3])
@each_kind
def test_a_weight_is_a_number_of_repetitions(kind, parts):
    exp, batch = kind_of(kind)
    cut, _ = kind_of(kind, micro_batches=parts)
    new, outputs = trained(cut, with_weights(batch, WEIGHTS))
    expected, of_repeated = trained(exp, rows(batch, REPEATED))
    close(new.params, expected.params)
    close(but_counts(outputs), but_counts(of_repeated))


@pytest.mark.slow
@each_kind
def test_weights_around_and_beside_and_of_zeros_and_ones(kind):
    exp, batch = kind_of(kind)
    around = computed(exp, Masked(batch, SHARES))
    close(computed(exp, with_weights(batch, SHARES)), around)
    kept = WEIGHTS > 0
    masked = computed(exp, Masked(batch, kept))
    assert computed(exp, Masked(batch, kept.astype(np.float32))) == pytest.approx(masked, rel=1e-5)
    if isinstance(batch, tuple):
        both = computed(exp, Masked(with_weights(batch, SHARES), kept))
        close(both, computed(exp, Masked(batch, SHARES * kept)))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["arrays", "batches", "device", "padded", "mesh"])
@pytest.mark.parametrize("kind", ["labels", "language"])
def test_an_epoch_is_measured_alike_whatever_the_batches(kind, source):
    exp, batch = kind_of(kind)
    data = with_weights(batch, SHARES)
    whole = exp.test(data, batch_size=N, callbacks=[])
    options = {"mesh": 2} if source == "mesh" else {}
    ds = {
        "arrays": data,
        "mesh": data,
        "batches": list(batches(data, 7)),
        "device": batches(data, 7, on_device=True),
        "padded": [pad_batch(part, 16) for part in batches(data, 16)],
    }[source]
    size = 8 if source in ("arrays", "mesh") else None
    close(exp.test(ds, batch_size=size, callbacks=[], **options), whole)
    if source in ("device", "mesh"):
        plain = data if source == "mesh" else list(batches(data, 7))
        found = exp.train(ds, batch_size=size, num_epochs=2, callbacks=[], **options)
        expected = exp.train(plain, batch_size=size, num_epochs=2, callbacks=[])
        close(found.params, expected.params)


@each_kind
def test_predictions_ignore_weights(kind):
    exp, batch = kind_of(kind)
    expected = exp.predict(batch, batch_size=7)
    np.testing.assert_array_equal(exp.predict(with_weights(batch, SHARES), batch_size=7), expected)
    np.testing.assert_array_equal(exp.predict(Masked(batch, SHARES), batch_size=7), expected)


@pytest.mark.parametrize("source", ["step", "stacked", "device"])
@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_impossible_weights_are_refused_before_the_step(bad, source):
    weights = np.where(np.arange(N) == 30, bad, SHARES).astype(np.float32)
    for exp, data in (
        (classes(), (X, Y, weights)),
        (regression(), Masked((X, NUMBERS), weights)),
        (gan(), (PIXELS, Y, weights)),
    ):
        ds = [data] if source == "step" else batches(data, 8, on_device=source == "device")
        step = exp.train_step if source == "step" else exp.train
        with pytest.raises(DataError, match=r"1 of \d+ weights are not finite numbers of 0"):
            step(data if source == "step" else ds)


def test_labels_without_weight_may_be_anything():
    hidden = np.where(WEIGHTS == 0, -1, Y)
    exp = classes()
    for batch in ((X, hidden, WEIGHTS), Masked((X, hidden), WEIGHTS)):
        close(computed(exp, batch), computed(exp, (X, Y, WEIGHTS)))
    spoilt = np.where(WEIGHTS == 0, np.nan, NUMBERS).astype(np.float32)
    exp = regression()
    new, outputs = trained(exp, (X, spoilt, WEIGHTS))
    expected, of_clean = trained(exp, (X, NUMBERS, WEIGHTS))
    close((new.params, outputs), (expected.params, of_clean))
    exp.test((X, spoilt, WEIGHTS), batch_size=7, callbacks=[])  # the stacked check


@pytest.mark.slow
def test_weights_and_class_weights_multiply():
    by_class = np.array([1.0, 2.0, 3.0], np.float32)
    weighted = computed(classes(class_weights=by_class), (X, Y, SHARES))
    assert weighted["loss"] == pytest.approx(
        computed(classes(), (X, Y, SHARES * by_class[Y]))["loss"]
    )
    both = computed(labels(class_weights=by_class), (X, LABELS, SHARES))
    exp = labels()
    losses = np.logaddexp(0, np.where(LABELS, -1, 1) * np.asarray(exp(X)))
    expected = np.average(losses, weights=SHARES[:, None] * by_class)
    assert both["loss"] == pytest.approx(expected, rel=1e-5)


def test_each_token_may_have_a_weight():
    exp, _ = kind_of("language")
    shares = RNG.random(TOKENS.shape, np.float32)
    losses = -np.log(
        np.take_along_axis(np.asarray(jax.nn.softmax(exp(TOKENS[:, :-1]))), TOKENS[:, 1:, None], 2)
    )
    found = computed(exp, Masked(TOKENS, shares))
    expected = np.average(losses[..., 0], weights=shares[:, 1:])
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert np.log(found["perplexity"]) == pytest.approx(expected, rel=1e-5)
    assert found["num_tokens"] == TOKENS[:, 1:].size


def test_weights_of_texts_go_around_them():
    for batch in ((TOKENS, SHARES), [TOKENS, TOKENS, SHARES > 0.5]):
        with pytest.raises(DataError, match=r"`solstice.data.Masked\(tokens, weights\)`"):
            kind_of("language")[0].train_step(batch)


def test_each_label_may_have_a_weight():
    exp, shares = labels(), RNG.random(LABELS.shape, np.float32)
    losses = np.logaddexp(0, np.where(LABELS, -1, 1) * np.asarray(exp(X)))
    found = computed(exp, Masked((X, LABELS), shares))
    assert found["loss"] == pytest.approx(np.average(losses, weights=shares), rel=1e-5)
    right = (np.asarray(exp(X)) >= 0) == (LABELS == 1)
    assert found["accuracy"] == pytest.approx(np.average(right, weights=shares), rel=1e-5)


def test_examples_of_a_gan_count_by_their_weights():
    exp = gan()
    found = computed(exp, (PIXELS, Y, SHARES))
    right = np.asarray(exp.predict_step(PIXELS)) > 0
    assert found["real_accuracy"] == pytest.approx(np.average(right, weights=SHARES), rel=1e-5)
    kept = SHARES > 0.5
    _, masked = trained(exp, Masked(PIXELS, kept))
    _, zeros = trained(exp, Masked(PIXELS, kept.astype(np.float32)))
    close(zeros, masked)


def test_batches_with_and_without_weights_do_not_mix():
    exp, (one, other) = classes(), (classes().eval_step(b)[1] for b in ((X, Y, SHARES), (X, Y)))
    with pytest.raises(ValueError, match=r"cannot merge .* with weights and without"):
        one.merge(other)
    for plain in ((X, Y), Masked((X, Y), Y > 0)):
        with pytest.raises(ValueError, match="batches of a data set must be alike"):
            exp.test([(X, Y, SHARES), plain], callbacks=[])


# Tasks and functions of users


def plain(outputs, targets, mask):
    return metrics.BinaryMetrics(outputs, targets, mask=mask, from_logits=True)


def aware(outputs, targets, mask, weights):
    return metrics.BinaryMetrics(outputs, targets, mask=mask, weights=weights, from_logits=True)


def test_a_function_of_metrics_takes_weights_or_refuses_them():
    assert computed(binary(metrics=aware), (X, Y > 0)) == computed(
        binary(metrics=plain), (X, Y > 0)
    )
    batch = X, Y > 0, SHARES
    close(computed(binary(metrics=aware), batch), computed(binary(), batch))
    with pytest.raises(DataError, match=r"`metrics=lambda outputs, targets, mask, weights=None"):
        binary(metrics=plain).train_step(batch)
    computed(binary(metrics=lambda *given, **more: aware(*given, **more)), batch)


class Poisson(experiments.Task):
    """A task without a word about weights."""

    @experiments.elementwise
    def check_values(self, batch, mask):
        if (experiments.counted(batch[1], mask) < 0).any():
            raise DataError("counts must be 0 or more")

    def outputs(self, outputs, x, targets):
        return outputs[:, 0]

    def losses(self, outputs, targets, mask):
        assert mask.dtype == bool
        return jnp.exp(outputs) - targets * outputs

    def metrics(self, outputs, targets, mask):
        return metrics.RegressionMetrics(jnp.exp(outputs), targets, mask=mask)


class Weighted(Poisson):
    def metrics(self, outputs, targets, mask, weights=None):
        assert mask.dtype == bool
        return metrics.RegressionMetrics(jnp.exp(outputs), targets, mask=mask, weights=weights)


class Dicts(Weighted):
    """A task that takes its batches apart itself."""

    def split(self, batch, mask):
        known = batch["y"] < 3
        return batch["x"], batch["y"], known if mask is None else known & mask

    def check_values(self, batch, mask):
        assert mask is None or mask.dtype == bool


def of_task(task):
    return experiments.SupervisedExperiment(ONE, SGD, task, sample_input=X)


COUNTS = RNG.poisson(2.0, N).astype(np.float32)


@pytest.mark.slow
def test_a_task_of_a_stranger_has_weights():
    exp = of_task(Weighted())
    hidden = np.where(WEIGHTS == 0, -1, COUNTS).astype(np.float32)
    for batch in ((X, hidden, WEIGHTS), Masked((X, hidden), WEIGHTS)):
        new, outputs = trained(exp, batch)
        expected, of_repeated = trained(exp, (X[REPEATED], COUNTS[REPEATED]))
        close((new.params, outputs), (expected.params, of_repeated))
        close(exp.test([batch] * 2, callbacks=[]), exp.eval_step(batch)[1].compute())


@pytest.mark.slow
def test_a_task_with_its_own_split_has_the_weights_of_examples():
    exp = of_task(Dicts())
    known = COUNTS < 3
    found = computed(exp, Masked({"x": X, "y": COUNTS}, SHARES))
    close(found, computed(of_task(Weighted()), (X[known], COUNTS[known], SHARES[known])))
    with pytest.raises(TypeError):  # `&` of booleans and of floats
        exp.train_step(Masked({"x": X, "y": COUNTS}, SHARES[:, None]))


def test_a_task_that_cannot_take_weights_refuses_them():
    exp = of_task(Poisson())
    computed(exp, (X, COUNTS))
    message = (
        r"`Poisson.metrics` has no parameter.*`def metrics\(self, outputs, targets, mask, weig"
    )
    for attempt in (exp.train_step, exp.eval_step, lambda b: exp.train([b], callbacks=[])):
        with pytest.raises(DataError, match=message):
            attempt((X, COUNTS, SHARES))


def test_a_split_that_makes_booleans_of_weights_is_named():
    class Forgets(Weighted):
        def split(self, batch, mask):
            return *batch, mask[:, 0] > 0

    with pytest.raises(TypeError, match=r"Forgets.split must return the weights of the targets"):
        of_task(Forgets()).train_step(Masked((X, COUNTS), np.ones((N, 2), np.float32)))


# Steps of one's own


def test_weights_of_a_batch():
    (x, y), weights = weights_of((X, Y, SHARES))
    assert (x is X, y is Y, weights is SHARES) == (True,) * 3
    assert weights_of((X, Y)) == ((X, Y), None)
    bare, weights = weights_of(Masked(X, SHARES))
    assert (bare is X, weights is SHARES) == (True, True)
    _, weights = weights_of(Masked((X, Y, np.where(SHARES > 0.5, SHARES, np.nan)), SHARES > 0.5))
    np.testing.assert_array_equal(weights, np.where(SHARES > 0.5, SHARES, 0))
    _, weights = weights_of(Masked((X, Y, SHARES > 0.2), SHARES > 0.5))
    assert weights.dtype == bool
    assert (weights == (SHARES > 0.5)).all()
    _, weights = jax.jit(weights_of)(Masked((X, Y, SHARES), SHARES - 0.5))
    np.testing.assert_allclose(weights[SHARES >= 0.5], (SHARES * (SHARES - 0.5))[SHARES >= 0.5])
    assert np.isnan(weights[SHARES < 0.5]).all()


@pytest.mark.parametrize(
    ("third", "message"),
    [
        (Y, r"must be an array of booleans, or.*If they are weights, write .*astype\('float32'\)"),
        (Y > 0, None),
        ((Y > 0).astype(int), r"If they are weights, write `batch\[2\].astype\('float32'\)"),
        (SHARES[:3], "the third part of a batch must have one entry for each of its 40 examples"),
        (None, "the third part of a batch must be an array of booleans, or of weights in floats"),
        (-SHARES, "40 of 40 weights are not finite numbers of 0 or more, such as -"),
        (np.array(["a"] * N), "the third part of a batch must be an array"),
    ],
)
def test_a_third_part_that_is_not_weights_is_refused(third, message):
    expected = does_not_raise() if message is None else pytest.raises(DataError, match=message)
    for attempt in (weights_of, classes().train_step, classes().check_batch):
        with expected:
            attempt((X, Y, third))


def test_a_hand_written_step_uses_them():
    class Mine(solstice.Experiment):
        model: eqx.nn.Linear

        def train_step(self, batch):
            return self.eval_step(batch)

        def eval_step(self, batch):
            (x, y), weights = weights_of(batch)
            preds = jax.vmap(self.model)(x)[:, 0]
            return self, metrics.RegressionMetrics(preds, y, weights=weights)

    trainer, exp = solstice.Trainer(), Mine(ONE)
    for data in ((X, NUMBERS, SHARES), Masked((X, NUMBERS), Y > 0), (X, NUMBERS)):
        found = trainer.validate(exp, data, batch_size=7)
        close(found, exp.eval_step(data)[1].compute())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "labels", "language"])
def test_rows_of_weights_are_one_evaluation(kind):
    exp, batch = kind_of(kind)
    table = np.stack([WEIGHTS, SHARES, np.ones(N, np.float32)])
    arrays, static = eqx.partition(exp, eqx.is_array)

    def of_weights(weights):
        return eqx.combine(arrays, static).eval_step(Masked(batch, weights))[1]

    every = jax.jit(jax.vmap(of_weights))(table)
    for index, weights in enumerate(table):
        found = jax.tree.map(lambda leaf, index=index: leaf[index], every).compute()
        close(found, computed(exp, Masked(batch, weights)))


def test_a_run_with_weights_resumes_within_an_epoch(tmp_path):
    class Dies(solstice.Callback):
        def on_step_end(self, record):
            if record.step == 9:
                raise KeyError("killed")

    def run(folder, *callbacks, **options):
        saver = solstice.callbacks.Checkpoint(folder, every=1)
        trainer = solstice.Trainer([saver, *callbacks])
        trainer.fit(classes(), (X, Y, SHARES), batch_size=7, num_epochs=2, **options)
        return trainer.history.rows

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyError, match="killed"):
        run(tmp_path / "cut", Dies())
    np.testing.assert_equal(run(tmp_path / "cut", resume="last"), whole)
