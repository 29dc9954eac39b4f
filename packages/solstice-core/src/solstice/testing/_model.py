"""The suite for models."""

# Trees of anything go through here: what a checker can tell of them is not worth its words.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

from abc import abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from solstice import _tree
from solstice.compat import Model, as_model
from solstice.testing._parts import Sgd, train
from solstice.testing._suite import (
    Conformance,
    all_arrays,
    differ,
    equal,
    feature,
    is_static,
    optional,
    rests_on,
    same_types,
    snapshot,
    through_numpy,
    two_devices,
)

HIDDEN, CLASSES, FEATURES, BATCH = 16, 3, 6, 8
KEY = jax.random.PRNGKey(0)


def _inputs(seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(BATCH, FEATURES)).astype(np.float32)


class ModelConformance(Conformance):
    """`class TestToynet(ModelConformance)`: everything that a `solstice.compat.Model` must do.

    Write `build`, which makes the net that the suite orders, and declare in `lacks` what the
    framework cannot do: "batch_norm", "dropout", or the name of an optional check.
    """

    @abstractmethod
    def build(self, *, hidden: int, classes: int, batch_norm: bool, dropout: float) -> Any:
        """The net: dense(hidden), batch norm if ordered, relu, dropout(rate), dense(classes).

        Args:
            hidden: width of the first layer.
            classes: width of the outputs.
            batch_norm: whether there is a BatchNorm, with running statistics and momentum 0.9.
            dropout: its rate; 0 for a net without the layer.

        Returns:
            An object of the framework, which `as_model` wraps, or the adapter itself.
        """

    def _model(self, *, batch_norm: bool = False, dropout: float = 0.0) -> Model:
        self.need("test_it_is_found_and_is_a_model")
        return self._found(batch_norm=batch_norm, dropout=dropout)

    def _found(self, *, batch_norm: bool = False, dropout: float = 0.0) -> Model:
        net = self.build(hidden=HIDDEN, classes=CLASSES, batch_norm=batch_norm, dropout=dropout)
        return as_model(net)

    def _ready(self, **order: Any) -> tuple[Model, Any, Any, Any]:
        model, x = self._model(**order), _inputs()
        params, state = model.init(KEY, x)
        return model, params, state, x

    # Basic: what every adapter must do

    def test_it_is_found_and_is_a_model(self) -> None:
        """`as_model` finds the adapter, which has `init` and `forward`."""
        assert isinstance(self._found(), Model), "protocol: `as_model` gives a Model"

    def test_it_is_static(self) -> None:
        """An adapter has no leaves and hashes, so that it may stand in any pytree."""
        is_static(self._model())

    def test_init_is_pure(self) -> None:
        """The same key gives the same values, and `init` leaves no trace in the adapter."""
        model, x = self._model(), _inputs()
        before = snapshot(x)
        first = snapshot(model.init(KEY, x))
        model.init(jax.random.PRNGKey(1), x)
        equal(first, snapshot(model.init(KEY, x)), "init is pure")
        equal(before, snapshot(x), "init leaves its input alone")

    def test_init_needs_shapes_alone(self) -> None:
        """`jax.eval_shape` of `init` tells what `init` gives, before and after it has run."""
        model, x = self._model(), _inputs()
        shapes = _tree.eval_shape(model.init, KEY, x)
        values = model.init(KEY, x)
        same_types(shapes, values, "init from shapes")
        same_types(_tree.eval_shape(model.init, KEY, x), values, "init from shapes")

    def test_params_are_inexact(self) -> None:
        """Every leaf of Params is an inexact array, so that `jax.grad` takes them as they are."""
        _, params, _, _ = self._ready()
        all_arrays(params, "params are inexact arrays")
        assert _tree.leaves(params), "params are inexact arrays: there are none"
        for path, leaf in _tree.leaves_by_path(params):
            inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
            assert inexact, f"params are inexact arrays: `{path}` is {leaf.dtype}"

    def test_state_is_arrays(self) -> None:
        """Every leaf of State is an array, and none is a PRNG key."""
        _, _, state, _ = self._ready()
        all_arrays(state, "state is arrays")

    def test_state_keeps_its_types(self) -> None:
        """A step of training gives back a State of the same structure, shapes and dtypes."""
        model, params, state, x = self._ready()
        _, after = model.forward(params, state, x, train=True, key=KEY)
        same_types(state, after, "state is stable")

    def test_outputs_have_the_batch_axis(self) -> None:
        """Axis 0 of the outputs is the batch, in training and in evaluation."""
        model, params, state, x = self._ready()
        for mode in (True, False):
            for size in (BATCH, 1):
                out, _ = model.forward(params, state, x[:size], train=mode, key=KEY)
                shape = getattr(out, "shape", None)
                assert shape == (size, CLASSES), f"outputs: expected {(size, CLASSES)}, got {shape}"

    def test_inputs_are_left_alone(self) -> None:
        """`forward` changes neither Params nor State nor inputs."""
        model, params, state, x = self._ready()
        before = snapshot((params, state, x))
        for mode in (True, False):
            model.forward(params, state, x, train=mode, key=KEY)
        equal(before, snapshot((params, state, x)), "forward leaves its arguments alone")

    @rests_on("test_inputs_are_left_alone")
    def test_forward_is_pure(self) -> None:
        """The same arguments give the same outputs, whatever was computed in between."""
        model, params, state, x = self._ready()
        for mode in (True, False):
            first = snapshot(model.forward(params, state, x, train=mode, key=KEY))
            model.forward(params, state, 2 * x, train=mode, key=jax.random.PRNGKey(3))
            second = snapshot(model.forward(params, state, x, train=mode, key=KEY))
            equal(first, second, "forward is pure")

    def test_params_are_used(self) -> None:
        """The outputs are those of the Params that are given, not of any that a model holds."""
        model, params, state, x = self._ready()
        zeros = _tree.map(jnp.zeros_like, params)
        for mode in (True, False):
            out, _ = model.forward(zeros, state, x, train=mode, key=KEY)
            assert not np.any(np.asarray(out)), "forward uses the params that it is given"

    def test_evaluation_needs_no_key(self) -> None:
        """`train=False` works without a key, and a key changes nothing."""
        model, params, state, x = self._ready()
        without, _ = model.forward(params, state, x, train=False)
        with_key, _ = model.forward(params, state, x, train=False, key=KEY)
        equal(without, with_key, "evaluation is deterministic and keyless")

    def test_evaluation_gives_the_state_back(self) -> None:
        """`train=False` gives back the State that it was given."""
        model, params, state, x = self._ready()
        _, after = model.forward(params, state, x, train=False, key=KEY)
        equal(state, after, "evaluation gives the state back")

    @rests_on("test_outputs_have_the_batch_axis", "test_evaluation_needs_no_key")
    def test_rows_do_not_see_each_other(self) -> None:
        """In evaluation, the output of a row alone is that row of the batch's output."""
        model, params, state, x = self._ready()
        _by_row(model, params, state, x)

    @rests_on(
        "test_params_are_inexact",
        "test_state_keeps_its_types",
        "test_inputs_are_left_alone",
        "test_forward_is_pure",
    )
    def test_a_step_works_compiled(self) -> None:
        """Under `jax.jit`, `jax.value_and_grad` and `jax.lax.scan`, steps do what they do alone."""
        model, params, state, x = self._ready()
        step = _step(model)
        xs = np.stack([x, 2 * x, -x])
        (p, s), _ = jax.jit(lambda carry, xs: jax.lax.scan(step, carry, xs))((params, state), xs)
        alone = params, state
        for one in xs:
            alone, _ = step(alone, jnp.asarray(one))
        equal(alone, (p, s), "compiled steps equal plain ones", atol=1e-4)

    @rests_on("test_a_step_works_compiled")
    def test_a_second_step_compiles_nothing(self) -> None:
        """What a step gives back is of the same types as what it took, so it is traced once."""
        model, params, state, x = self._ready()
        traced: list[None] = []

        def counted(carry: Any, x: Any) -> Any:
            traced.append(None)
            return _step(model)(carry, x)

        compiled = jax.jit(counted)
        carry, _ = compiled((params, state), x)
        compiled(carry, x)
        assert len(traced) == 1, "one compilation: the second step was traced again"

    @rests_on("test_state_is_arrays", "test_evaluation_needs_no_key")
    def test_values_come_back_from_a_checkpoint(self) -> None:
        """Params and State, saved by path and read back, give the same outputs."""
        model, params, state, x = self._ready()
        again = through_numpy((params, state))
        out, _ = model.forward(params, state, x, train=False)
        restored, _ = model.forward(again[0], again[1], x, train=False)
        equal(out, restored, "checkpoint", atol=1e-6)

    def test_it_takes_any_key(self) -> None:
        """Keys of the new kind (`jax.random.key`) and the old serve alike."""
        model, x = self._model(), _inputs()
        same_types(model.init(KEY, x), model.init(jax.random.key(0), x), "any key")

    @rests_on("test_it_takes_any_key", "test_evaluation_needs_no_key", "test_a_step_works_compiled")
    def test_it_learns(self) -> None:
        """A `ClassificationExperiment` learns three clusters."""
        accuracy = train(self._model(), Sgd())
        assert accuracy > 0.9, f"it learns: the accuracy is {accuracy:.2f} after 8 epochs"

    # Optional: declared by name in `lacks`

    @optional
    @rests_on("test_evaluation_needs_no_key")
    def test_it_maps_over_seeds(self) -> None:
        """`jax.vmap` over `forward` gives what a loop over Params gives."""
        model, params, state, x = self._ready()
        many = _tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
        mapped = jax.vmap(lambda p: model.forward(p, state, x, train=False)[0])(many)
        for index, scale in enumerate((1, 2)):
            alone, _ = model.forward(
                _tree.map(lambda leaf, s=scale: s * leaf, params), state, x, train=False
            )
            equal(alone, mapped[index], "vmap", atol=1e-5)

    @optional
    @rests_on("test_evaluation_needs_no_key")
    def test_it_keeps_half_precision(self) -> None:
        """bfloat16 Params and inputs give bfloat16 outputs: nothing is promoted in silence."""
        model, params, state, x = self._ready()
        half = _tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        out, _ = model.forward(half, state, jnp.asarray(x, jnp.bfloat16), train=False)
        assert out.dtype == jnp.bfloat16, f"no promotion: bfloat16 became {out.dtype}"

    @optional
    @rests_on("test_evaluation_needs_no_key")
    def test_it_works_sharded(self) -> None:
        """A batch that is spread over two devices gives what it gives on one."""
        sharding = two_devices()
        model, params, state, x = self._ready()
        expected, _ = model.forward(params, state, x, train=False)
        forward = jax.jit(lambda p, s, x: model.forward(p, s, x, train=False)[0])
        replicated = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        params, state = jax.device_put((params, state), replicated)
        equal(expected, forward(params, state, jax.device_put(x, sharding)), "sharded", atol=1e-5)

    # Features

    @feature("dropout")
    def test_dropout_follows_its_key(self) -> None:
        """In training, the same key gives the same outputs, and another gives others."""
        model, params, state, x = self._ready(dropout=0.5)
        outs = [
            model.forward(params, state, x, train=True, key=jax.random.PRNGKey(seed))[0]
            for seed in (0, 0, 1)
        ]
        equal(outs[0], outs[1], "dropout is keyed")
        assert differ(outs[0], outs[2]), "dropout is keyed: two keys gave the same outputs"

    @feature("dropout")
    def test_dropout_differs_between_rows(self) -> None:
        """Equal rows of a batch are not all dropped alike."""
        model, params, state, x = self._ready(dropout=0.5)
        out, _ = model.forward(params, state, np.tile(x[:1], (BATCH, 1)), train=True, key=KEY)
        assert differ(out[:1], out[1:2]) or differ(out[:1], out[2:3]), "dropout is the same by row"

    @feature("dropout")
    def test_dropout_needs_a_key(self) -> None:
        """Training without a key raises, and does not drop the same units for ever."""
        model, params, state, x = self._ready(dropout=0.5)
        raised = False
        try:
            model.forward(params, state, x, train=True)
        except Exception:
            raised = True
        assert raised, "dropout is keyed: training without a key raised nothing"

    @feature("dropout")
    @rests_on("test_rows_do_not_see_each_other")
    def test_dropout_sleeps_in_evaluation(self) -> None:
        """Evaluation drops nothing: it is deterministic, and unlike training."""
        model, params, state, x = self._ready(dropout=0.5)
        out, _ = model.forward(params, state, x, train=False)
        equal(
            out, model.forward(params, state, x, train=False, key=KEY)[0], "evaluation is keyless"
        )
        trained, _ = model.forward(params, state, x, train=True, key=KEY)
        assert differ(out, trained), "train and eval differ: dropout does nothing in training"
        _by_row(model, params, state, x)

    @feature("batch_norm")
    @rests_on("test_state_is_arrays", "test_state_keeps_its_types")
    def test_statistics_move_in_training(self) -> None:
        """Training changes the State, which keeps its types."""
        model, params, state, x = self._ready(batch_norm=True)
        _, after = model.forward(params, state, 3 * x + 5, train=True, key=KEY)
        same_types(state, after, "state is stable")
        all_arrays(state, "state is arrays")
        assert _tree.leaves(state), "the statistics are state: there is none"
        assert differ(state, after), "the statistics move: training left the state as it was"

    @feature("batch_norm")
    @rests_on("test_rows_do_not_see_each_other", "test_statistics_move_in_training")
    def test_statistics_are_used_in_evaluation(self) -> None:
        """Evaluation uses the State, not the batch: rows do not see each other."""
        model, params, state, x = self._ready(batch_norm=True)
        moved = state
        for _ in range(20):
            _, moved = model.forward(params, moved, 3 * x + 5, train=True, key=KEY)
        before, same = model.forward(params, state, x, train=False)
        after, _ = model.forward(params, moved, x, train=False)
        equal(state, same, "evaluation gives the state back")
        assert differ(before, after), "evaluation uses the statistics: they changed nothing"
        _by_row(model, params, moved, x)

    @feature("batch_norm")
    @rests_on("test_evaluation_needs_no_key")
    def test_training_uses_the_batch(self) -> None:
        """In training, it is the batch's own statistics that normalise it."""
        model, params, state, x = self._ready(batch_norm=True)
        trained, _ = model.forward(params, state, 3 * x + 5, train=True, key=KEY)
        evaluated, _ = model.forward(params, state, 3 * x + 5, train=False)
        assert differ(trained, evaluated), "train and eval differ: training used the state"


def _by_row(model: Model, params: Any, state: Any, x: Any) -> None:
    whole, _ = model.forward(params, state, x, train=False)
    for index in (0, BATCH - 1):
        alone, _ = model.forward(params, state, x[index : index + 1], train=False)
        equal(whole[index : index + 1], alone, "one row is that row of the batch", atol=1e-5)


def _step(model: Model) -> Any:
    """A step of gradient descent that could be anybody's."""

    def step(carry: Any, x: Any) -> Any:
        params, state = carry

        def loss(params: Any) -> Any:
            out, new = model.forward(params, state, x, train=True, key=KEY)
            return jnp.mean(jnp.square(out - 1)), new

        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params)
        params = _tree.map(lambda p, g: p - 0.1 * g, params, grads)
        return (params, state), value

    return step
