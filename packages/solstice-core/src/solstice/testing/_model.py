"""ModelConformance: the conformance suite for model adapters."""

import jax
import numpy as np

from solstice import _tree
from solstice.testing._assertions import all_arrays, differ, equal, same_types
from solstice.testing._model_calls import draws, rows_are_apart
from solstice.testing._model_transforms import ModelTransforms
from solstice.testing._nets import BATCH, KEY
from solstice.testing._suite import feature, rests_on


class ModelConformance(ModelTransforms, is_suite=True):
    """`class TestToynet(ModelConformance)`: test all requirements of a `solstice.compat.Model`.

    Write `build`, which creates a net for the suite, with or without batch norm and dropout.
    Declare in `unsupported` what the framework cannot do: "batch_norm", "dropout",
    "test_it_maps_over_seeds", "test_it_keeps_half_precision", "test_it_makes_no_double_precision",
    "test_it_works_sharded", "test_steps_give_the_same_on_a_mesh", or one of the checks of a
    feature.
    """

    @feature("dropout")
    @rests_on("test_forward_is_pure")
    def test_dropout_follows_its_key(self) -> None:
        """In training, equal keys give equal outputs, and different keys different outputs."""
        net = self.order(dropout=0.5)
        outputs = [net.train(key=jax.random.PRNGKey(seed))[0] for seed in (0, 0, 1)]
        equal(outputs[0], outputs[1], "dropout is keyed: the same key gave two outputs")
        assert differ(outputs[0], outputs[2]), (
            "dropout is keyed: two keys gave the same outputs; forward(train=True) drops nothing, "
            "or one key is used again and again: draw from the key that it is given"
        )

    @feature("dropout")
    @rests_on("test_evaluation_needs_no_key")
    def test_dropout_differs_between_rows(self) -> None:
        """Equal rows of a batch have different dropout masks."""
        net = self.order(dropout=0.5)
        x = np.tile(net.x[:1], (BATCH, 1))
        same = not draws(net.train(x)[0])
        assert not same or not differ(net.train(x)[0], net.evaluate(x)), (
            "dropout is the same by row: draw a mask for each"
        )

    @feature("dropout")
    def test_dropout_needs_a_key(self) -> None:
        """Training without a key raises an error, instead of dropping the same units each time."""
        net = self.order(dropout=0.5)
        raised = False
        try:
            net.train(key=None)
        except Exception:
            raised = True
        assert raised, "dropout is keyed: training without a key raised nothing"

    @feature("dropout")
    @rests_on("test_rows_do_not_see_each_other")
    def test_dropout_sleeps_in_evaluation(self) -> None:
        """Evaluation drops nothing, even with a key; training does."""
        net = self.order(dropout=0.5)
        x = np.tile(net.x[:1], (BATCH, 1))
        out = net.evaluate(x)
        if not draws(self.order().evaluate(x)):  # a net without dropout may draw for itself
            keyed = net.model.forward(net.params, net.state, x, train=False, key=KEY)[0]
            what = "dropout sleeps in evaluation: forward(train=False) drops units, as in training"
            assert not draws(out), what
            assert not draws(keyed), f"{what}, where it is given a key"
        assert differ(out, net.train(x)[0]), (
            "dropout works in training: forward(train=True) drops nothing, as in evaluation"
        )
        rows_are_apart(net)

    @feature("batch_norm")
    @rests_on("test_state_is_arrays", "test_state_keeps_its_types", "test_inputs_are_left_alone")
    def test_statistics_move_in_training(self) -> None:
        """Training returns another State of the same types."""
        net = self.order(batch_norm=True)
        assert _tree.leaves(net.state), (
            "the statistics are state: for a net with batch norm, init returns a State without "
            "arrays"
        )
        _, after = net.train(3 * net.x + 5)
        same_types(net.state, after, "state is stable")
        all_arrays(after, "state is arrays")
        assert differ(net.state, after), (
            "the statistics move: forward(train=True) returned the State that it received; the "
            "new statistics are lost, or kept in the adapter"
        )

    @feature("batch_norm")
    @rests_on("test_rows_do_not_see_each_other", "test_statistics_move_in_training")
    def test_statistics_are_used_in_evaluation(self) -> None:
        """Evaluation uses the State and not the batch, so rows are independent."""
        net = self.order(batch_norm=True)
        moved = net.state
        for _ in range(20):
            _, moved = net.train(3 * net.x + 5, state=moved)
        rows_are_apart(net, moved)
        assert differ(net.evaluate(), net.evaluate(state=moved)), (
            "evaluation uses the statistics: with others in the State, forward(train=False) gave "
            "the same outputs"
        )

    @feature("batch_norm")
    @rests_on("test_statistics_move_in_training")
    def test_training_uses_the_batch(self) -> None:
        """Training normalises by the statistics of the batch."""
        net = self.order(batch_norm=True)
        others = np.concatenate([net.x[:1], 3 * net.x[1:] + 5])
        assert differ(net.train()[0][:1], net.train(others)[0][:1]), (
            "training uses the batch: forward(train=True) gave a row the same outputs as the other "
            "rows changed; it normalises with the statistics of the State, as in evaluation"
        )
