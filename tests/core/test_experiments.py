"""The ready-made Experiments: their losses, what is masked, their options, what they refuse."""

from dataclasses import FrozenInstanceError
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from ready_made import (
    ADAM,
    BACK,
    FEATURES,
    JUDGE,
    KINDS,
    LABELS,
    MASK,
    NUMBERS,
    PIXELS,
    RNG,
    SGD,
    TABLE,
    THREE,
    TOKENS,
    TWO,
    VARIATIONAL,
    N,
    X,
    Y,
    autoencoder,
    binary,
    classes,
    close,
    computed,
    each_kind,
    gan,
    labels,
    language,
    layer,
    log_softmax,
    noiseless,
    regression,
    rows,
    trained,
    vae,
)

import solstice
from solstice import DataError, metrics
from solstice.compat import EquinoxModel
from solstice.data import Masked, batches, pad_batch
from solstice.testing import Sgd

# What all of them do


@pytest.mark.slow
@each_kind
def test_what_is_masked_counts_for_nothing(kind):
    make, batch = KINDS[kind]
    if kind == "vae":
        make = noiseless
    exp = make()
    new, outputs = trained(exp, Masked(batch, MASK))
    expected, of_rest = trained(exp, rows(batch, MASK))
    close(new.params, expected.params)
    close(outputs, of_rest)
    close(computed(exp, Masked(batch, MASK)), computed(exp, rows(batch, MASK)))


@pytest.mark.slow
@each_kind
def test_padding_changes_nothing(kind):
    make, batch = KINDS[kind]
    exp = make()
    part = rows(batch, slice(0, 5))
    close(computed(exp, pad_batch(part, 8)), computed(exp, part))


@pytest.mark.slow
@each_kind
def test_an_epoch_is_measured_alike_whatever_the_batches(kind):
    make, batch = KINDS[kind]
    exp = make()
    whole = exp.test(batch, batch_size=N, callbacks=[])
    close(exp.test(batch, batch_size=7, callbacks=[]), whole)
    padded = [pad_batch(part, 16) for part in batches(batch, 16)]
    close(exp.test(padded, callbacks=[]), whole)


@pytest.mark.slow
@each_kind
def test_it_learns_from_the_trainer_and_by_hand_alike(kind):
    make, batch = KINDS[kind]
    exp = make()
    data = batches(batch, 8)
    by_hand = exp
    for part in data:
        by_hand, _ = by_hand.train_step(part)
    trained = exp.train(data, num_epochs=1, callbacks=[])
    close(trained, by_hand, rtol=1e-4)
    assert int(trained.step) == 5
    more = trained.train(data, num_epochs=30, callbacks=[])
    before, after = computed(exp, batch), computed(more, batch)
    assert after["loss"] < before["loss"]


@pytest.mark.slow
@each_kind
def test_parts_of_a_batch_train_as_the_whole(kind):
    make, batch = KINDS[kind]
    if kind == "vae":
        make = noiseless
    whole, outputs = trained(make(), Masked(batch, MASK))
    cut, merged = trained(make(micro_batches=3), Masked(batch, MASK))
    close(cut.params, whole.params)
    close(merged, outputs)


@each_kind
def test_a_mask_that_does_not_fit_is_told(kind):
    make, batch = KINDS[kind]
    with pytest.raises(DataError, match="must be an array of booleans, or of weights in floats"):
        make().train_step(Masked(batch, MASK.astype(np.int32)))
    with pytest.raises(DataError, match="one entry for each of its 40 examples"):
        make().train_step(Masked(batch, MASK[:3]))


@each_kind
def test_options_out_of_range_are_told(kind):
    make, _ = KINDS[kind]
    with pytest.raises(ValueError, match="micro_batches must be 1 or more; it is 0"):
        make(micro_batches=0)
    with pytest.raises(TypeError, match="loss must be a function"):
        make(loss="mse")


@each_kind
def test_a_loss_that_is_a_mean_is_told(kind):
    make, batch = KINDS[kind]
    with pytest.raises(ValueError, match="without a mean"):
        make(loss=lambda outputs, targets: jnp.mean(outputs)).train_step(batch)


@pytest.mark.slow
@each_kind
def test_a_loss_may_be_given(kind):
    make, batch = KINDS[kind]
    size = {"language": 6 * N}.get(kind, N)

    def constant(outputs, targets):
        return jnp.full(targets.shape[:2] if kind == "language" else targets.shape[:1], 2.5)

    found = computed(make(loss=constant), batch)
    expected = 2.5 + found.get("divergence", 0)
    assert found["loss"] == pytest.approx(expected, rel=1e-6), size


# Losses


def weighted(losses, weights):
    return (losses * weights).sum() / weights.sum()


@settings(max_examples=20, deadline=None)
@given(
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    weights=st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=2, max_size=2),
)
def test_smoothed_labels_and_weighted_classes(smoothing, weights):
    weights = np.array([1.0, *weights])
    exp = classes(label_smoothing=smoothing, class_weights=weights)
    log_p = log_softmax(exp(X))
    targets = np.eye(3)[Y] * (1 - smoothing) + smoothing / 3
    expected = weighted(-(targets * log_p).sum(axis=1), weights[Y])
    found = exp.eval_step((X, Y))[1].compute()
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(Y, log_p.argmax(axis=1)))
    # Batches of other sizes have other sums of weights, which must not matter.
    cut = exp.test((X, Y), batch_size=7, callbacks=[])
    assert cut["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.uint8])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_binary_loss(dtype, smoothing):
    y = (Y == 1).astype(dtype)
    exp = binary(label_smoothing=smoothing, class_weights=[1.0, 3.0], threshold=0.3)
    p = 1 / (1 + np.exp(-np.asarray(exp(X), np.float64)))
    assert p.shape == (N,)
    targets = y.astype(float) * (1 - smoothing) + smoothing / 2
    losses = -(targets * np.log(p) + (1 - targets) * np.log(1 - p))
    found = computed(exp, (X, y))
    assert found["loss"] == pytest.approx(weighted(losses, np.where(y, 3.0, 1.0)), rel=1e-5)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, p >= 0.3))
    np.testing.assert_allclose(exp.predict_step(X), p, rtol=1e-5)


def test_the_loss_of_several_labels():
    exp = labels(class_weights=[1.0, 2.0, 0.0], label_smoothing=0.1)
    p = 1 / (1 + np.exp(-np.asarray(exp(X), np.float64)))
    targets = LABELS * 0.9 + 0.05
    losses = -(targets * np.log(p) + (1 - targets) * np.log(1 - p))
    expected = weighted(losses, np.broadcast_to([1.0, 2.0, 0.0], losses.shape))
    found = computed(exp, (X, LABELS))
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["subset_accuracy"] == pytest.approx(sk.accuracy_score(LABELS, p >= 0.5))


def test_logits_far_out_have_finite_losses_and_gradients():
    y = np.array([0, 1, 0, 1])
    exp = solstice.BinaryClassificationExperiment(
        eqx.nn.Linear(1, 1, key=jax.random.key(0)), SGD, sample_input=np.ones((1, 1), np.float32)
    )
    exp = exp.with_params(
        eqx.tree_at(lambda layer: layer.weight, exp.params, jnp.full((1, 1), 1e4))
    )
    x = np.array([[1.0], [1.0], [-1.0], [-1.0]], np.float32)
    new, outputs = exp.train_step((x, y))
    assert np.isfinite(outputs.compute()["loss"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new.params))


@pytest.mark.parametrize("shape", [(N,), (N, 2), (N, 3)])
def test_regression_takes_targets_of_its_models_shape(shape):
    net = layer(1 if shape == (N,) else shape[1])
    y = RNG.normal(size=shape).astype(np.float32)
    exp = solstice.RegressionExperiment(net, SGD, sample_input=X)
    preds = np.asarray(jax.vmap(net)(X)).reshape(shape)
    found = computed(exp, (X, y))
    assert found["loss"] == pytest.approx(np.square(preds - y).mean(), rel=1e-5)
    assert exp(X).shape == exp.predict_step((X, y)).shape == shape
    assert found["r2"] == pytest.approx(sk.r2_score(y.reshape(-1), preds.reshape(-1)), rel=1e-4)


def test_targets_that_are_masked_may_be_nan_one_by_one():
    y = RNG.normal(size=(N, 3)).astype(np.float32)
    y[:, 1] = np.nan
    exp = solstice.RegressionExperiment(THREE, SGD, sample_input=X)
    new, outputs = exp.train_step(Masked((X, y), ~np.isnan(y)))
    assert np.isfinite(outputs.compute()["loss"])
    assert outputs.compute()["num_nan"] == 0
    np.testing.assert_array_equal(new.params.weight[1], exp.params.weight[1])
    assert np.all(new.params.weight[0] != exp.params.weight[0])


@pytest.mark.parametrize("mask", [None, "rows", "tokens", "pad"])
def test_the_loss_of_a_language_model_is_over_the_tokens_that_count(mask):
    exp = language(pad_id=0 if mask == "pad" else None, token_bytes=[1, 2, 3, 1, 1])
    log_p = log_softmax(np.asarray(exp.params["table"])[TOKENS[:, :-1]])
    targets = TOKENS[:, 1:]
    counts = np.ones(targets.shape, bool)
    batch = TOKENS
    if mask == "rows":
        counts, batch = counts & MASK[:, None], Masked(TOKENS, MASK)
    elif mask == "tokens":
        some = RNG.random(TOKENS.shape) < 0.5
        counts, batch = some[:, 1:], Masked(TOKENS, some)
    elif mask == "pad":
        counts = targets != 0
    losses = -np.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0][counts]
    found = computed(exp, batch)
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(losses.mean()), rel=1e-5)
    assert found["num_tokens"] == counts.sum()
    num_bytes = np.array([1, 2, 3, 1, 1])[targets][counts].sum()
    expected = losses.sum() / np.log(2) / num_bytes
    assert found["bits_per_byte"] == pytest.approx(expected, rel=1e-5)


def test_the_parts_of_the_lower_bound():
    exp = vae(beta=0.5)
    mean, log_variance = (np.asarray(part, np.float64) for part in exp.encode(PIXELS))
    divergence = (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(axis=1).mean() / 2
    decoded = np.asarray(exp.decode(mean.astype(np.float32)), np.float64)
    likelihood = PIXELS * np.log(decoded) + (1 - PIXELS) * np.log(1 - decoded)
    found = computed(exp, PIXELS)
    assert found["divergence"] == pytest.approx(divergence, rel=1e-5)
    assert found["reconstruction"] == pytest.approx(-likelihood.sum(axis=1).mean(), rel=1e-5)
    assert found["loss"] == pytest.approx(
        found["reconstruction"] + 0.5 * found["divergence"], rel=1e-6
    )
    np.testing.assert_allclose(exp.predict_step(PIXELS), decoded, rtol=1e-4)


def test_latents_are_drawn_in_training_with_the_variance_of_the_encoder():
    exp = vae()
    model = exp.learner.forward(train=True, key=jax.random.key(3))
    many = np.tile(PIXELS[:1], (4000, 1))
    decoded, codes = model(many)
    weight = np.asarray(exp.params["decoder"].weight)
    expected = weight @ np.diag(np.exp(np.asarray(codes[0, 2:]))) @ weight.T
    np.testing.assert_allclose(np.cov(np.asarray(decoded).T), expected, rtol=0.15, atol=0.02)


# A GAN


@pytest.mark.slow
def test_each_player_goes_down_its_own_gradient():
    exp = gan()
    new, outputs = trained(exp, PIXELS)
    assert int(new.step) == int(new.discriminator.step) == 1
    names = ["discriminator_loss", "generator_loss", "real_accuracy", "generated_accuracy"]
    assert sorted(outputs) == sorted(names)

    keys = jax.random.split(jax.random.fold_in(exp.generator.key, 0), 4)
    fake = jax.vmap(exp.generator.params)(jax.random.normal(keys[0], (N, 2)))

    def of_discriminator(params):
        real, generated = (jax.vmap(eqx.combine(params, JUDGE))(x) for x in (PIXELS, fake))
        return jnp.mean(jax.nn.softplus(-real) + jax.nn.softplus(generated))

    params = exp.discriminator.params
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(of_discriminator)(params))
    close(new.discriminator.params, expected)
    assert outputs["discriminator_loss"] == pytest.approx(float(of_discriminator(params)), rel=1e-5)

    def of_generator(params):
        made = jax.vmap(params)(jax.random.normal(keys[2], (N, 2)))
        return jnp.mean(jax.nn.softplus(-jax.vmap(eqx.combine(expected, JUDGE))(made)))

    params = exp.generator.params
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(of_generator)(params))
    close(new.generator.params, moved)
    assert outputs["generator_loss"] == pytest.approx(float(of_generator(params)), rel=1e-5)


@pytest.mark.slow
def test_a_generator_learns_the_mean_of_the_data():
    x = np.random.default_rng(1).normal(3.0, 0.5, (512, 1)).astype(np.float32)
    judge = eqx.nn.MLP(1, "scalar", 16, 1, key=jax.random.key(1))
    exp = solstice.GANExperiment(layer(1, 2), judge, ADAM, 2, sample_input=x)
    exp = exp.train(x, batch_size=64, num_epochs=40, callbacks=[])
    assert float(exp.sample(jax.random.key(0), 1000).mean()) == pytest.approx(3.0, abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 3])
def test_masked_examples_train_no_player(parts):
    exp = gan(micro_batches=parts)
    poisoned = np.where(MASK[:, None], PIXELS, np.float32(1e6))
    for pixels in (PIXELS, poisoned):
        new, outputs = trained(exp, Masked(pixels, MASK))
        assert outputs["discriminator_loss"] < 10
        assert all(np.abs(leaf).max() < 10 for leaf in jax.tree.leaves(new.discriminator.params))


def test_evaluation_of_a_gan_draws_anew_for_each_batch_and_changes_nothing():
    exp = gan()
    one, first = exp.eval_step(PIXELS)
    _, second = one.eval_step(PIXELS)
    _, again = exp.eval_step(PIXELS)
    assert first.compute()["generator_loss"] != second.compute()["generator_loss"]
    assert first.compute()["generator_loss"] == again.compute()["generator_loss"]
    before = exp.train(PIXELS, batch_size=8, callbacks=[])
    exp.test(PIXELS, batch_size=8, callbacks=[])
    close(exp.train(PIXELS, batch_size=8, callbacks=[]), before)


def test_a_gan_of_least_squares_and_two_optimizers():
    exp = gan(
        loss=lambda logits, is_real: (logits - is_real) ** 2, discriminator_optimizer=Sgd(0.0)
    )
    new, outputs = exp.train_step(PIXELS)
    close(new.discriminator.params, exp.discriminator.params)
    assert outputs.compute()["discriminator_loss"] >= 0


# Hooks, and what comes out


def test_metrics_may_be_given():
    exp = binary(metrics=lambda logits, y, mask: metrics.BinaryCurves(logits, y, mask=mask))
    y = Y == 1
    found = exp.test((X, y), batch_size=7, callbacks=[])
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(y, np.asarray(exp(X))))
    assert set(found) == {"loss", "roc_auc", "average_precision", "num_out_of_range", "num_nan"}
    exp.train((X, y), batch_size=7, callbacks=[])  # which grow, and are merged in training too


def test_a_second_experiment_with_the_same_parts_compiles_nothing():
    counter = Counting()
    kinds = [
        lambda: solstice.RegressionExperiment(counter, SGD, sample_input=X),
        lambda: solstice.RegressionExperiment(counter, SGD, sample_input=X, seed=3),
    ]
    traces = []
    for make in kinds:
        make().train((X, NUMBERS), batch_size=8, callbacks=[])
        traces.append(counter.traces)
    assert traces[0] == traces[1] > 0


@jax.tree_util.register_static
class Counting:
    def __init__(self):
        self.traces = 0

    def init(self, key, x, /):
        return {"w": jnp.zeros(x.shape[1:])}, ()

    def forward(self, params, state, x, /, *, train, key=None):
        self.traces += train
        return x @ params["w"], state


@pytest.mark.parametrize("kind", ["autoencoder", "vae"])
def test_what_is_encoded_can_be_decoded(kind):
    exp, _ = KINDS[kind][0](), None
    codes = exp.encode(PIXELS)
    means = codes[0] if kind == "vae" else codes
    assert means.shape == (N, 2)
    np.testing.assert_allclose(exp.decode(means), exp.predict_step((PIXELS, Y)), rtol=1e-5)
    assert solstice.VAEExperiment(VARIATIONAL, BACK, SGD, 2).params is None


def test_samples():
    for exp in (vae(), gan()):
        one, again = exp.sample(jax.random.key(1), 5), exp.sample(jax.random.key(1), 5)
        assert one.shape == (5, FEATURES)
        np.testing.assert_array_equal(one, again)
        assert np.any(one != exp.sample(jax.random.key(2), 5))
    with pytest.raises(DataError, match="no values yet"):
        solstice.VAEExperiment(VARIATIONAL, BACK, SGD, 2).sample(jax.random.key(0), 1)


@pytest.mark.slow
def test_labels_of_a_batch_do_not_matter_to_what_has_none():
    for make in (autoencoder, vae, gan):
        close(trained(make(), (PIXELS, Y))[0], trained(make(), PIXELS)[0])


# Text


def test_text_is_generated_token_by_token_as_the_model_has_it():
    table = np.full((5, 5), -50.0, np.float32)
    for token in range(5):
        table[token, (token + 2) % 5] = 50.0
    exp = language().with_params({"table": jnp.asarray(table)})
    prompts = np.array([[0, 1], [3, 4]], np.int32)
    for temperature in [1.0, 0.0]:
        found = exp.generate(prompts, 4, key=jax.random.key(0), temperature=temperature)
        np.testing.assert_array_equal(found, [[0, 1, 3, 0, 2, 4], [3, 4, 1, 3, 0, 2]])


def test_text_is_drawn_from_the_distribution():
    table = np.log(np.tile(np.array([0.1, 0.2, 0.3, 0.4, 1e-9], np.float32), (5, 1)))
    exp = language().with_params({"table": jnp.asarray(table)})
    drawn = exp.generate(np.zeros((4000, 1), np.int32), 1, key=jax.random.key(0))[:, 1]
    shares = np.bincount(np.asarray(drawn), minlength=5) / 4000
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.3, 0.4, 0.0], atol=0.03)


def test_lengths_may_differ_from_batch_to_batch():
    exp = language().train([TOKENS[:8], TOKENS[:8, :4]], callbacks=[])
    assert int(exp.step) == 2


# What is refused


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: classes(label_smoothing=1.0), ValueError, r"label_smoothing must be in \[0, 1\)"),
        (
            lambda: classes(label_smoothing=0.1, loss=max),
            ValueError,
            "smooth the labels in your `loss`",
        ),
        (lambda: classes(class_weights=[1, 2]), ValueError, "class_weights must be 3 numbers"),
        (lambda: classes(class_weights=[1, 2, -1]), ValueError, "none negative"),
        (lambda: binary(class_weights=[0, 0]), ValueError, "not all 0"),
        (lambda: classes(class_weights=[1, 2, np.inf]), ValueError, "infinite"),
        (lambda: classes(class_weights="balanced"), ValueError, "np.bincount"),
        (lambda: classes(class_weights={0: 1.0}), ValueError, "numbers, one for each class"),
        (
            lambda: classes(micro_batches=2.0),
            ValueError,
            "micro_batches must be 1 or more; it is 2.0, a float: write 2",
        ),
        (lambda: classes(seed=0.5), TypeError, "seed must be an integer"),
        (lambda: classes(seed=jax.random.split(jax.random.key(0))), TypeError, "one key"),
        (lambda: gan(seed="a"), TypeError, "seed must be an integer"),
        (lambda: classes(metrics=3), TypeError, "metrics must be a function"),
        (
            lambda: solstice.MultilabelClassificationExperiment(THREE, SGD, 0),
            ValueError,
            "num_labels must be 1 or more",
        ),
        (
            lambda: solstice.LanguageModelExperiment(TABLE, SGD, 1),
            ValueError,
            "vocabulary_size must be 2 or more",
        ),
        (lambda: language(pad_id=5), ValueError, r"pad_id must be between 0 and 4"),
        (lambda: language(token_bytes=[1, 2]), ValueError, "an integer for each of the 5 tokens"),
        (
            lambda: solstice.VAEExperiment(VARIATIONAL, BACK, SGD, 0),
            ValueError,
            "latent_size must be 1 or more",
        ),
        (lambda: vae(beta=float("nan")), ValueError, "beta must be 0 or more"),
        (
            lambda: solstice.GANExperiment(BACK, JUDGE, SGD, 0),
            ValueError,
            "latent_size must be 1 or more",
        ),
    ],
)
def test_bad_options(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "batch", "message"),
    [
        (binary, (X, Y), "labels are neither 0 nor 1, such as 2"),
        (binary, (X, NUMBERS), r"integers or booleans of shape \[n\]"),
        (binary, (X, LABELS), r"integers or booleans of shape \[n\]"),
        (labels, (X, LABELS[:, :2]), r"must be of shape \[n, 3\]"),
        (labels, (X, Y), r"of shape \[n, 3\]"),
        (labels, (X, LABELS * 2), "neither 0 nor 1, such as 2"),
        (regression, (X, np.full(N, np.nan, np.float32)), "40 of 40 targets are NaN"),
        (regression, (X, NUMBERS[:, None]), r"Write `targets\[:, 0\]`"),
        (regression, (X, jnp.full(N, jnp.nan, jnp.bfloat16)), "40 of 40 targets are NaN"),
        (regression, Masked((X, NUMBERS), MASK[:, None]), r"must be of that shape, or \[40\]"),
        (labels, Masked((X, LABELS), MASK[:, None]), r"must be of that shape, or \[40\]"),
        (regression, (X[:0], NUMBERS[:0]), "one example or more on axis 0"),
        (gan, PIXELS[:0], "one example or more on axis 0"),
        (gan, np.full_like(PIXELS, np.nan), "features are NaN"),
        (gan, (PIXELS * 255).astype(np.uint8), "features of floating point"),
        (gan, {"image": PIXELS}, "features of floating point"),
        (classes, (X, Y.astype(str)), "np.unique"),
        (classes, (Masked(X, MASK), Y), r"A mask goes around all of it, once: `Masked\(\("),
        (classes, Masked((X, Y), list(MASK)), "np.asarray\\(mask, bool\\)"),
        (regression, (X, X), "predictions of the shape of the targets"),
        (regression, (X, np.array(["a"] * N)), "targets must be real numbers"),
        (language, X, "expected tokens, integers"),
        (language, TOKENS[:, :1], "a length of 2 or more"),
        (language, TOKENS + 1, r"tokens are outside \[0, 5\), such as 5"),
        (language, Masked(TOKENS, np.ones((N, 3), bool)), r"must be of that shape, or \[40\]"),
        (autoencoder, (PIXELS * 255).astype(np.uint8), "features of floating point"),
        (autoencoder, np.full_like(PIXELS, np.nan), "features are NaN"),
        (autoencoder, Masked(np.full_like(PIXELS, np.nan), ~MASK), "features are NaN"),
        (vae, PIXELS * 2, r"features must be in \[0, 1\] for the default loss"),
        (gan, PIXELS[:, :3], "the generator must give the shape of the features"),
    ],
)
def test_bad_batches(make, batch, message):
    for step in ("train_step", "eval_step"):
        with pytest.raises(DataError, match=message):
            getattr(make(), step)(batch)
    with pytest.raises(DataError, match=message):
        make().train([batch], callbacks=[])


@pytest.mark.parametrize(
    ("exp", "batch", "message"),
    [
        (lambda: solstice.BinaryClassificationExperiment(THREE, SGD), (X, Y == 1), "one logit"),
        (
            lambda: solstice.MultilabelClassificationExperiment(TWO, SGD, 3),
            (X, LABELS),
            r"logits of shape \[40, 3\]; it gave f32\[40,2\]",
        ),
        (lambda: solstice.LanguageModelExperiment(TABLE, SGD, 6), TOKENS, r"\[40, 6, 6\]"),
        (lambda: solstice.AutoencoderExperiment(TWO, layer(3, 2), SGD), PIXELS, "the decoder must"),
        (lambda: solstice.VAEExperiment(TWO, BACK, SGD, 2), PIXELS, "2 means and as many"),
        (
            lambda: solstice.GANExperiment(BACK, layer(3), SGD, 2),
            PIXELS,
            "the discriminator must give one logit",
        ),
    ],
)
def test_models_that_do_not_fit(exp, batch, message):
    with pytest.raises(DataError, match=message):
        exp().train_step(batch)


def test_a_mask_goes_around_a_batch_or_around_all_arrays():
    beside = classes().test((X, Y, MASK), batch_size=7, callbacks=[])
    with pytest.raises(DataError, match="examples, not batches"):
        classes().train(Masked((X, Y), MASK), callbacks=[])
    masked = classes().test(Masked((X, Y), MASK), batch_size=7, callbacks=[])
    close(masked, classes().test((X[MASK], Y[MASK]), batch_size=7, callbacks=[]))
    close(masked, beside)


@pytest.mark.parametrize("options", [{"num_tokens": -1}, {"num_tokens": 1, "temperature": -1}])
def test_what_cannot_be_generated_is_told(options):
    with pytest.raises(ValueError, match="must be 0 or more"):
        language().generate(TOKENS[:1], key=jax.random.key(0), **options)


def test_prompts_must_be_tokens():
    with pytest.raises(DataError, match=r"tokens are outside"):
        language().generate(np.array([[9]]), 3, key=jax.random.key(0))
    with pytest.raises(DataError, match="expected tokens"):
        language().generate(np.array([1, 2]), 3, key=jax.random.key(0))


def test_a_model_of_random_layers_trains_and_evaluates():
    """Dropout in both halves of an autoencoder gets keys in training, and none in evaluation."""
    encoder = EquinoxModel(lambda key: eqx.nn.Sequential([layer(2), eqx.nn.Dropout(0.5)]))
    exp = solstice.AutoencoderExperiment(encoder, BACK, SGD)
    exp, outputs = exp.train_step(PIXELS)
    assert np.isfinite(outputs.compute()["loss"])
    np.testing.assert_array_equal(exp(PIXELS), exp(PIXELS))


@each_kind
def test_predictions_are_one_row_an_example_whatever_the_batches(kind):
    make, batch = KINDS[kind]
    exp = make()
    expected = exp.predict_step(batch)
    for ds in (batch, Masked(batch, MASK)):
        found = exp.predict(ds, batch_size=7)
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# At the edges


def test_weights_count_whatever_the_integers_of_labels_and_tokens():
    """int8 cannot hold the number of classes, by which JAX takes an index below 0."""
    weights = np.arange(200.0)
    expected = None
    for dtype in (np.int32, np.int8, np.uint8):
        exp = solstice.ClassificationExperiment(layer(200), SGD, 200, class_weights=weights)
        found = computed(exp.setup((X, Y)), (X, (Y + 100).astype(dtype)))
        expected = expected or found
        assert found == expected
        exp = language(token_bytes=np.arange(5))
        assert computed(exp, TOKENS.astype(dtype)) == computed(exp, TOKENS)


def test_the_seed_may_be_an_integer_of_any_kind():
    net = EquinoxModel(lambda key: eqx.nn.Linear(FEATURES, 3, key=key))
    weights = [
        solstice.ClassificationExperiment(net, SGD, 3, seed=seed, sample_input=X).params.weight
        for seed in (3, np.int64(3), jnp.int32(3), jax.random.key(3))
    ]
    np.testing.assert_array_equal(weights, [weights[0]] * 4)


def test_a_weighted_class_weighs_all_its_elements():
    def elements(logits, labels):
        return jnp.square(logits - jax.nn.one_hot(labels, 3))

    weights = np.array([1.0, 2.0, 3.0])
    few = X[:3], Y[:3]  # three examples of three classes: weights could be spread from the left
    exp = classes(loss=elements, class_weights=weights)
    losses = np.asarray(elements(exp(few[0]), few[1]))
    expected = (losses.mean(axis=1) * weights[few[1]]).sum() / weights[few[1]].sum()
    assert computed(exp, few)["loss"] == pytest.approx(expected, rel=1e-5)


def test_weights_of_labels_need_a_loss_of_each_label():
    def mean(logits, labels):
        return jnp.square(logits - labels.astype(logits.dtype)).mean(axis=1)

    with pytest.raises(DataError, match="class_weights weigh each label"):
        labels(loss=mean, class_weights=[1, 2, 3]).train_step((X, LABELS))
    with pytest.raises(DataError, match="the mask one for each element"):
        labels(loss=mean).train_step(Masked((X, LABELS), LABELS > 0))
    labels(loss=mean).train_step(Masked((X, LABELS), MASK))


def test_a_scalar_among_the_features():
    """It comes first in the order of names, and has no axis to count examples by."""

    @jax.tree_util.register_static
    class Scaled:
        def init(self, key, x, /):
            return {"w": jnp.zeros(FEATURES)}, ()

        def forward(self, params, state, x, /, *, train, key=None):
            return x["factor"] * (x["x"] @ params["w"]), state

    batch = {"factor": np.float32(2), "x": X}, NUMBERS
    exp = solstice.RegressionExperiment(Scaled(), SGD).train([batch], callbacks=[])
    found = exp.test([Masked(batch, MASK)], callbacks=[])["loss"]
    expected = np.square(np.asarray(exp(batch[0])) - NUMBERS)[MASK].mean()
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("task", ["train", "test"])
def test_text_beside_the_features_is_left_to_callbacks(task):
    @jax.tree_util.register_static
    class First:
        def init(self, key, x, /):
            return {"w": jnp.zeros(FEATURES)}, ()

        def forward(self, params, state, x, /, *, train, key=None):
            return x["x"] @ params["w"], state

    batch = {"name": np.array(["a"] * N), "x": X}, NUMBERS
    exp = solstice.RegressionExperiment(First(), SGD)
    done = getattr(exp, task)([batch], callbacks=[])
    assert done is not None
    if task == "train":
        assert np.all(done.params["w"] != 0)


def test_text_is_generated_up_to_the_length_that_was_trained():
    """A model with positions knows texts of so many tokens; it is given all but the last."""

    @jax.tree_util.register_static
    class Positions:
        def init(self, key, x, /):
            return {"position": jax.random.normal(key, (x.shape[1], 5))}, ()

        def forward(self, params, state, x, /, *, train, key=None):
            logits = jnp.take(params["position"], jnp.arange(x.shape[1]), axis=0, mode="fill")
            return jnp.broadcast_to(logits, (*x.shape, 5)), state

    exp = solstice.LanguageModelExperiment(Positions(), SGD, 5, sample_input=TOKENS[:, :-1])
    likeliest = np.asarray(exp.params["position"]).argmax(axis=1)
    for prompts in (TOKENS[:2, :3], TOKENS[:2, :3].astype(np.uint8)):
        texts = exp.generate(prompts, np.int64(4), key=jax.random.key(0), temperature=0)
        assert texts.dtype == jnp.int32
        np.testing.assert_array_equal(texts[:, :3], prompts)
        np.testing.assert_array_equal(texts[:, 3:], [likeliest[2:]] * 2)
    with pytest.raises(FloatingPointError, match="it does not support texts of 7 tokens"):
        exp.generate(TOKENS[:1, :3], 5, key=jax.random.key(0))
    np.testing.assert_array_equal(exp.generate(TOKENS, 0, key=jax.random.key(0)), TOKENS)


def test_generated_tokens_may_be_beyond_the_integers_of_the_prompts():
    exp = solstice.LanguageModelExperiment(Last(), SGD, 300, sample_input=TOKENS)
    texts = exp.generate(TOKENS[:1].astype(np.int8), 1, key=jax.random.key(0), temperature=0)
    assert int(texts[0, -1]) == 299


@jax.tree_util.register_static
class Last:
    """The last token of 300 is always the likeliest."""

    def init(self, key, x, /):
        return {"logits": jnp.arange(300.0)}, ()

    def forward(self, params, state, x, /, *, train, key=None):
        return jnp.broadcast_to(params["logits"], (*x.shape, 300)), state


def test_a_step_that_assigns_a_field_is_answered_with_replace():
    class Assigns(solstice.Experiment):
        weight: Any

        def train_step(self, batch):
            self.weight = self.weight + batch.sum()
            return self, {}

        def eval_step(self, batch):
            return self, {}

    with pytest.raises(FrozenInstanceError) as info:
        solstice.Trainer().fit(Assigns(np.float32(0)), [np.ones(2, np.float32)])
    assert "solstice.replace(self, weight=...)" in str(info.value)
