"""A ready-made Experiment trains a Penzai model, by type and by name."""

import pytest
from nets import net

import solstice
from solstice.testing import Sgd, blobs


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: solstice.compat.PenzaiModel(net)])
def test_it_trains(wrap):
    experiment = solstice.ClassificationExperiment(wrap(net(16, 3, 0.1)), Sgd(0.1), num_classes=3)
    experiment = experiment.train(blobs(), num_epochs=5, callbacks=[])
    assert experiment.test(blobs(), callbacks=[])["accuracy"] > 0.9
