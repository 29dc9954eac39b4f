"""ClassificationExperiment: what it learns, what it refuses, and what it leaves alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

import solstice
from solstice import ClassificationExperiment, DataError, Trainer
from solstice.compat import EquinoxModel, as_model

CLASSES = 3
N = 48
RNG = np.random.default_rng(0)
CENTRES = 4 * RNG.normal(size=(CLASSES, 4))
Y = RNG.integers(0, CLASSES, N).astype(np.int32)
X = (CENTRES[Y] + RNG.normal(size=(N, 4))).astype(np.float32)


@jax.tree_util.register_static
class Sgd:
    """Plain gradient descent."""

    def init(self, params, /):
        return ()

    def step(self, grads, state, params, /, *, value=None, value_fn=None, **extra):
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), state

    def eval_params(self, state, params, /):
        return params


@jax.tree_util.register_static
class Curious(Sgd):
    """Keeps the loss that it is told, and the loss that it works out."""

    def init(self, params, /):
        return jnp.zeros(2)

    def step(self, grads, state, params, /, *, value=None, value_fn=None, **extra):
        new, _ = super().step(grads, (), params)
        return new, jnp.stack([value, value_fn(params)])


@jax.tree_util.register_static
class EvaluatesAtZero(Sgd):
    """Evaluates at another point than it trains at."""

    def eval_params(self, state, params, /):
        return jax.tree.map(jnp.zeros_like, params)


@jax.tree_util.register_static
class Linear:
    """A linear model that counts how often it is traced in training."""

    def __init__(self):
        self.traces = 0

    def init(self, key, x, /):
        return {"w": 0.1 * jax.random.normal(key, (x.shape[-1], CLASSES))}, ()

    def forward(self, params, state, x, /, *, train, key=None):
        self.traces += train
        return x @ params["w"], state


@jax.tree_util.register_static
class Noisy(Linear):
    """Logits that are the parameters, with noise and a count of batches in training."""

    def init(self, key, x, /):
        return {"w": jnp.zeros(CLASSES)}, jnp.zeros((), jnp.int32)

    def forward(self, params, state, x, /, *, train, key=None):
        logits = jnp.tile(params["w"], (x.shape[0], 1))
        if not train:
            return logits, state
        return logits + jax.random.normal(key, logits.shape), state + 1


@jax.tree_util.register_static
class Gives(Linear):
    """Gives whatever a function makes of the inputs."""

    def __init__(self, function):
        self.function = function

    def forward(self, params, state, x, /, *, train, key=None):
        return self.function(x), state


def net(key):
    return eqx.nn.MLP(4, CLASSES, 16, 1, key=key)


FACTORY = EquinoxModel(net)
SGD = Sgd()
LINEAR = Linear()
NOISY = Noisy()


def make(model=FACTORY, optimizer=SGD, num_classes=CLASSES, **options):
    return ClassificationExperiment(model, optimizer, num_classes, **options)


def ready():
    return make(sample_input=X[:1])


def batches(size=16, labels=Y):
    return solstice.data.batches((X, labels), size)


def fit(exp, data, **options):
    return Trainer().fit(exp, data, **options)


def numbers(leaf):
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(numbers(a), numbers(b))


def assert_close(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(numbers(a), numbers(b), rtol=1e-4, atol=1e-6)


def differ(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(np.any(np.asarray(a) != np.asarray(b)) for a, b in pairs)


def numpy_cross_entropy(logits, labels):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -log_probabilities[np.arange(len(labels)), labels].mean()


# Learning


def test_it_learns():
    before = make(sample_input=X).test(batches(), callbacks=[])
    after = make().train(batches(), num_epochs=20, callbacks=[]).test(batches(), callbacks=[])
    assert after["loss"] < 0.5 * before["loss"]
    assert after["accuracy"] > 0.9


def test_train_takes_validation_and_arrays_and_steps():
    exp = make().train((X, Y), (X, Y), batch_size=16, max_steps=6, callbacks=[])
    assert int(exp.step) == 6


def test_a_bare_module_and_its_adapter_train_alike():
    module = net(jax.random.key(1))
    bare = fit(make(module), batches())
    wrapped = fit(make(EquinoxModel(module)), batches())
    assert_same(bare.params, wrapped.params)
    assert bare.learner.model is as_model(module)


def test_training_gives_a_copy_and_leaves_the_original():
    exp = ready()
    before = jax.tree.map(np.array, exp.params)
    trained = exp.train(batches(), callbacks=[])
    assert_same(exp.params, before)
    assert int(exp.step) == 0
    assert int(trained.step) == 3
    assert differ(trained.params, before)


def test_training_leaves_an_original_without_values():
    exp = make()
    exp.train(batches(), callbacks=[])
    assert exp.params is None
    assert exp.learner.inputs is None


def test_training_goes_on_where_it_ended():
    data = [(X[:16], Y[:16]), (X[16:32], Y[16:32])]
    twice = fit(fit(make(), data[:1]), data[1:])
    assert_same(twice.params, fit(make(), data).params)
    assert int(twice.step) == 2


def test_testing_changes_nothing():
    exp = ready()
    before = jax.tree.map(np.array, exp.params)
    exp.test(batches(), callbacks=[])
    assert_same(exp.params, before)


# Seeds and initial values


@pytest.mark.parametrize(
    "seed",
    [7, np.int64(7), jax.random.key(7), jax.random.PRNGKey(7)],
    ids=["int", "numpy", "typed", "legacy"],
)
def test_a_seed_is_an_integer_or_a_key(seed):
    expected = make(NOISY, seed=7, sample_input=X)
    exp = make(NOISY, seed=seed)
    assert_same(make(seed=seed, sample_input=X).params, make(seed=7, sample_input=X).params)
    assert_same(fit(exp, batches()).params, fit(expected, batches()).params)


def test_other_seeds_give_other_values():
    assert differ(make(seed=0, sample_input=X).params, make(seed=1, sample_input=X).params)
    assert differ(make(sample_input=X).params, make(seed=1, sample_input=X).params)
    assert_same(make(sample_input=X).params, make(seed=0, sample_input=X).params)


def test_a_sample_input_and_the_first_batch_give_the_same_values():
    given = make(sample_input=X[:2])
    taken = make().setup((X[:16], Y[:16]))
    assert_same(given, taken)
    assert_same(fit(given, batches()), fit(make(), batches()))


def test_setup_happens_once():
    exp = ready()
    assert exp.setup((X, Y)) is exp


def test_each_step_has_another_key():
    exp = make(NOISY, sample_input=X)
    batch = X[:1], np.zeros(1, np.int32)
    one, first = exp.train_step(batch)
    _, second = one.with_params(exp.params).train_step(batch)
    _, again = exp.train_step(batch)
    assert first.compute()["loss"] != second.compute()["loss"]
    assert first.compute()["loss"] == again.compute()["loss"]


def test_training_moves_the_state_and_evaluation_does_not():
    exp = fit(make(NOISY), batches(), num_epochs=2)
    assert int(exp.state) == 6
    evaluated, _ = exp.eval_step((X, Y))
    assert int(evaluated.state) == 6


# Steps by themselves


def test_a_step_works_without_a_trainer():
    exp = ready()
    batch = X[:16], Y[:16]
    new, metrics = exp.train_step(batch)
    assert int(new.step) == 1
    assert differ(new.params, exp.params)
    assert metrics.compute()["loss"] > 0
    assert_close(new.params, fit(exp, [batch]).params)


def test_a_step_works_under_jit_and_in_it_is_as_it_is_without():
    exp = ready()
    batch = X[:16], Y[:16]
    eager, expected = exp.train_step(batch)
    compiled, metrics = jax.jit(lambda exp, batch: exp.train_step(batch))(exp, batch)
    assert jax.tree.structure(compiled) == jax.tree.structure(exp)
    assert_close(compiled, eager)
    np.testing.assert_allclose(metrics.compute()["loss"], expected.compute()["loss"], rtol=1e-5)


def test_a_step_sets_up_an_experiment_that_is_not():
    batch = X[:16], Y[:16]
    new, _ = make().train_step(batch)
    assert_same(new.params, ready().train_step(batch)[0].params)


def test_an_eager_step_refuses_labels_out_of_range():
    for step in [ready().train_step, ready().eval_step]:
        with pytest.raises(DataError, match=r"1 of 2 labels are outside \[0, 3\), such as 3"):
            step((X[:2], np.array([0, 3])))


@pytest.mark.parametrize("mode", ["train_step", "eval_step"])
def test_the_loss_is_the_mean_cross_entropy(mode):
    exp = make(LINEAR, sample_input=X)
    _, metrics = getattr(exp, mode)((X, Y))
    expected = numpy_cross_entropy(X @ np.asarray(exp.params["w"]), Y)
    np.testing.assert_allclose(metrics.compute()["loss"], expected, rtol=1e-5)


def test_the_update_is_the_gradient_of_the_cross_entropy():
    exp = make(LINEAR, sample_input=X)
    new, _ = exp.train_step((X, Y))
    w = np.asarray(exp.params["w"], np.float64)
    probabilities = np.exp(X @ w)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    gradient = X.T @ (probabilities - np.eye(CLASSES)[Y]) / len(Y)
    np.testing.assert_allclose(new.params["w"], w - 0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_large_logits_in_half_precision_have_a_finite_loss_in_float32():
    exp = make(Gives(lambda x: jnp.full((x.shape[0], CLASSES), 3e4, jnp.float16)), sample_input=X)
    _, metrics = exp.eval_step((X, Y))
    assert {leaf.dtype for leaf in jax.tree.leaves(metrics.loss)} == {np.dtype("float32")}
    np.testing.assert_allclose(metrics.compute()["loss"], np.log(CLASSES), rtol=1e-6)


def test_the_optimizer_is_told_the_loss_and_its_function():
    exp = make(NOISY, Curious(), sample_input=X)
    new, metrics = exp.train_step((X, Y))
    value, worked_out = np.asarray(new.opt_state)
    assert value > 0
    np.testing.assert_allclose(value, metrics.compute()["loss"], rtol=1e-6)
    np.testing.assert_allclose(worked_out, value, rtol=1e-6)  # with the same noise


def test_evaluation_is_at_the_optimizers_point():
    exp = make(LINEAR, EvaluatesAtZero(), sample_input=X)
    np.testing.assert_array_equal(exp(X), np.zeros((N, CLASSES)))
    np.testing.assert_allclose(
        exp.eval_step((X, Y))[1].compute()["loss"], np.log(CLASSES), rtol=1e-6
    )
    assert exp.train_step((X, Y))[1].compute()["loss"] != np.float32(np.log(CLASSES))


# Logits, predictions, tests


def test_a_call_gives_logits():
    exp = ready()
    expected = jax.vmap(eqx.combine(exp.params, net(jax.random.key(0))))(X)
    np.testing.assert_allclose(exp(X), expected, rtol=1e-6)


def test_a_call_before_any_data_is_an_error():
    with pytest.raises(DataError, match=r"no values yet: train it first, or give `sample_input="):
        make()(X)


@pytest.mark.parametrize("as_batch", [lambda x, y: (x, y), lambda x, y: [x, y], lambda x, y: x])
def test_predictions_are_probabilities(as_batch):
    exp = fit(make(), batches())
    data = [as_batch(x, y) for x, y in batches()]
    found = np.concatenate(list(Trainer().predict(exp, data)))
    assert found.shape == (N, CLASSES)
    np.testing.assert_allclose(found.sum(axis=1), np.ones(N), rtol=1e-5)
    np.testing.assert_allclose(found, jax.nn.softmax(exp(X)), rtol=1e-4, atol=1e-6)


def test_predictions_need_no_true_labels():
    exp = ready()
    unknown = [(X[:4], np.full(4, -1)), (X[4:8], np.full(4, 99))]
    assert len(list(Trainer().predict(exp, unknown))) == 2


@pytest.mark.parametrize("size", [16, 20])
def test_a_test_is_over_all_examples_also_of_a_smaller_last_batch(size):
    exp = fit(make(), batches())
    logits = np.asarray(exp(X))
    found = exp.test(batches(size), callbacks=[])
    predicted = logits.argmax(axis=1)
    scores = sklearn.metrics.precision_recall_fscore_support(
        Y, predicted, average="macro", zero_division=0
    )
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(Y, predicted))
    assert found["precision_macro"] == pytest.approx(scores[0])
    assert found["recall_macro"] == pytest.approx(scores[1])
    assert found["f1_macro"] == pytest.approx(scores[2])
    assert found["loss"] == pytest.approx(numpy_cross_entropy(logits, Y), rel=1e-5)
    assert found["num_out_of_range"] == 0


def test_train_takes_a_smaller_last_batch():
    exp = fit(make(LINEAR), batches(20))
    assert int(exp.step) == 3
    expected = make(LINEAR, sample_input=X)
    for batch in batches(20):
        expected, _ = expected.train_step(batch)
    assert_close(exp.params, expected.params)


# What is refused


@pytest.mark.parametrize("num_classes", [1, 0, -3])
def test_too_few_classes(num_classes):
    with pytest.raises(ValueError, match=f"num_classes must be 2 or more; it is {num_classes}"):
        make(num_classes=num_classes)


def test_a_model_or_an_optimizer_of_no_framework():
    with pytest.raises(TypeError, match="no installed adapter wraps"):
        make(3)
    with pytest.raises(TypeError, match="no installed adapter wraps"):
        make(optimizer=3)


def test_the_model_and_the_optimizer_exchanged():
    with pytest.raises(TypeError, match="no installed adapter wraps"):
        ClassificationExperiment(Sgd(), Linear())


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_labels_of_any_integer_type(dtype):
    expected = fit(make(), batches())
    assert_same(fit(make(), batches(labels=Y.astype(dtype))).params, expected.params)
    _, metrics = ready().train_step((X, Y.astype(dtype)))
    assert metrics.compute()["num_out_of_range"] == 0


UNFIT = {
    "one-hot": (np.eye(CLASSES, dtype=np.float32)[Y], r"f32\[\d+,3\].*argmax\(axis=-1\)"),
    "one-hot integers": (np.eye(CLASSES, dtype=np.int32)[Y], r"argmax\(axis=-1\)"),
    "float": (Y.astype(np.float32), r"f32\[\d+\].*astype\(int\)"),
    "bool": (Y > 0, r"bool\[\d+\].*astype\(int\)"),
    "a column": (Y[:, None], r"i32\[\d+,1\]"),
}


@pytest.mark.parametrize(("labels", "message"), UNFIT.values(), ids=UNFIT)
@pytest.mark.parametrize("start", [make, ready])
def test_labels_that_are_no_classes(start, labels, message):
    trainer, exp = Trainer(), start()
    with pytest.raises(DataError, match=rf"labels must be integers of shape \[n\].*{message}") as e:
        trainer.fit(exp, batches(labels=labels))
    assert not hasattr(e.value, "experiment")
    assert int(trainer.experiment.step) == 0
    with pytest.raises(DataError, match="labels must be integers"):
        trainer.test(start(), batches(labels=labels))


@pytest.mark.parametrize("labels", [[0, 1], 1, None], ids=["list", "number", "none"])
def test_labels_that_are_no_array(labels):
    with pytest.raises(DataError, match="labels must be integers of shape"):
        ready().train_step((X[:2], labels))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (CLASSES, r"1 of 48 labels are outside \[0, 3\), such as 3\. Give num_classes=4, or fix"),
        (-1, r"1 of 48 labels are outside \[0, 3\), such as -1"),
    ],
)
@pytest.mark.parametrize("start", [make, ready])
def test_labels_out_of_range_train_nothing(start, bad, message):
    trainer = Trainer()
    labels = np.where(np.arange(N) == 20, bad, Y)
    with pytest.raises(DataError, match=message) as e:
        trainer.fit(start(), batches(N, labels))
    assert not hasattr(e.value, "experiment")
    assert int(trainer.experiment.step) == 0
    with pytest.raises(DataError, match=message):
        trainer.test(start(), batches(N, labels))


def test_negative_labels_are_not_mended_by_more_classes():
    with pytest.raises(DataError, match=r"such as -1") as e:
        ready().check_batch((X[:2], np.array([0, -1])))
    assert "num_classes=" not in str(e.value)


@pytest.mark.parametrize("steps_per_call", [None, 2])
def test_labels_out_of_range_in_a_later_batch_keep_the_steps_before(steps_per_call):
    trainer = Trainer(steps_per_call=steps_per_call)
    labels = np.where(np.arange(N) == 40, CLASSES, Y)
    with pytest.raises(DataError, match="1 of 16 labels are outside") as e:
        trainer.fit(make(), batches(16, labels))
    newest = e.value.experiment
    assert int(newest.step) == 2
    assert_same(newest.params, trainer.experiment.params)
    assert_same(newest.params, fit(make(), batches(16), max_steps=2).params)


def test_labels_out_of_range_in_validation_keep_the_epoch():
    trainer = Trainer()
    labels = np.where(np.arange(N) == 40, CLASSES, Y)
    with pytest.raises(DataError, match="1 of 16 labels are outside") as e:
        trainer.fit(make(), batches(), batches(16, labels), num_epochs=3)
    assert int(e.value.experiment.step) == 3


WIDE = np.concatenate([X, X], axis=1)


@pytest.mark.parametrize("data", [[(WIDE, Y)], [(X[:, :, None], Y)]], ids=["wider", "deeper"])
def test_features_of_another_shape(data):
    exp = ready()
    message = r"initialised with features whose examples are \[4\]; these are \[(8|4, 1)\]"
    with pytest.raises(DataError, match=message):
        fit(exp, data)
    with pytest.raises(DataError, match=message):
        exp.test(data, callbacks=[])
    with pytest.raises(DataError, match=message):
        list(Trainer().predict(exp, data))
    with pytest.raises(DataError, match=message):
        exp(data[0][0])


def test_a_validation_set_of_another_shape_is_refused_before_training():
    trainer = Trainer()
    with pytest.raises(DataError, match=r"are \[4\]; these are \[8\]"):
        trainer.fit(make(), batches(), [(WIDE, Y)])
    assert int(trainer.experiment.step) == 0


def test_features_may_be_a_tree():
    class Two(eqx.Module):
        layer: eqx.nn.Linear

        def __call__(self, x):
            return self.layer(jnp.concatenate([x["a"], x["b"]]))

    module = Two(eqx.nn.Linear(4, CLASSES, key=jax.random.key(0)))
    features = {"a": X[:, :1], "b": X[:, 1:]}
    exp = fit(make(module), solstice.data.batches((features, Y), 16), num_epochs=10)
    assert exp(features).shape == (N, CLASSES)
    assert exp.test([(features, Y)], callbacks=[])["accuracy"] > 0.8
    with pytest.raises(DataError, match=r"\['a'\]\[1\], \['b'\]\[3\]; these are \['a'\]\[1\]$"):
        exp({"a": X[:, :1]})


NO_PAIRS = {
    "dict": (
        {"image": X, "label": Y},
        r"\{'image': f32\[48,4\].*'label'.*`\(batch\['image'\], batch\['label'\]\)`",
    ),
    "four parts": ((X, Y, Y, Y), r"\(f32\[48,4\].*, i32\[48\].*, i32\[48\].*, i32\[48\].*\)"),
    "array": (X, r"f32\[48,4\]"),
}


@pytest.mark.parametrize(("batch", "message"), NO_PAIRS.values(), ids=NO_PAIRS)
@pytest.mark.parametrize("start", [make, ready])
def test_a_batch_that_is_no_pair(start, batch, message):
    message = rf"a batch must be a pair \(features, labels\); it is {message}"
    with pytest.raises(DataError, match=message):
        fit(start(), [batch])
    with pytest.raises(DataError, match=message):
        start().test([batch], callbacks=[])


@pytest.mark.parametrize("start", [make, ready])
def test_a_third_part_of_integers(start):
    message = r"the third part.* is i32\[48\].* weights, write `batch\[2\].astype\('float32'\)`"
    for attempt in (lambda: fit(start(), [(X, Y, Y)]), lambda: start().test([(X, Y, Y)])):
        with pytest.raises(DataError, match=message):
            attempt()


WRONG_LOGITS = {
    "other classes": (lambda x: jnp.zeros((x.shape[0], 5)), r"f32\[48,5\]"),
    "one axis": (lambda x: jnp.zeros(x.shape[0]), r"f32\[48\]"),
    "no array": (lambda x: (x, x), r"\(f32\[48,4\].*, f32\[48,4\].*\)"),
}


@pytest.mark.parametrize(("function", "found"), WRONG_LOGITS.values(), ids=WRONG_LOGITS)
def test_logits_of_the_wrong_shape(function, found):
    exp = make(Gives(function), sample_input=X)
    message = rf"must give logits of shape \[48, 3\]; it gave {found}.*num_classes"
    for attempt in [
        lambda: fit(exp, [(X, Y)]),
        lambda: exp.test([(X, Y)], callbacks=[]),
        lambda: exp(X),
        lambda: list(Trainer().predict(exp, [X])),
    ]:
        with pytest.raises(DataError, match=message):
            attempt()


# Compilation


def test_experiments_that_share_a_model_and_an_optimizer_share_a_compilation():
    model, optimizer = Linear(), Sgd()
    fit(make(model, optimizer, seed=0), batches())
    traces = model.traces
    assert traces > 0
    other = fit(make(model, optimizer, seed=1), batches(), num_epochs=2)
    assert model.traces == traces
    assert int(other.step) == 6


def test_experiments_with_other_optimizers_do_not():
    model = Linear()
    fit(make(model, Sgd()), batches())
    traces = model.traces
    fit(make(model, Sgd()), batches())
    assert model.traces > traces


def test_a_bare_module_shared_by_experiments_is_compiled_once():
    traces = []

    class Net(eqx.Module):
        layer: eqx.nn.Linear

        def __call__(self, x):
            traces.append(None)
            return self.layer(x)

    module = Net(eqx.nn.Linear(4, CLASSES, key=jax.random.key(0)))
    one = fit(make(module), batches())
    count = len(traces)
    other = fit(make(module, seed=1), batches())
    assert one.learner.model is other.learner.model
    assert len(traces) == count


@pytest.mark.parametrize("batch", [X[:4], (X[:4], Y[:4])], ids=["bare", "pair"])
def test_to_predict_without_values_is_an_error(batch):
    with pytest.raises(DataError, match="no values yet: train it first"):
        next(Trainer().predict(make(), [batch]))
