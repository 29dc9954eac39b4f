"""The conformance suite of Solstice for this adapter."""

from solstice.testing import ModelConformance
from solstice_toynet._net import Net


class TestToynet(ModelConformance):
    unsupported = {"batch_norm": "toynet has no BatchNorm"}

    def build(self, *, hidden, classes, batch_norm, dropout):
        if batch_norm:
            raise NotImplementedError
        return Net(hidden, classes, dropout)
