from nets import net

from solstice.testing import ModelConformance


class TestPenzai(ModelConformance):
    unsupported = {"batch_norm": "Penzai has no BatchNorm"}

    def build(self, *, hidden, classes, batch_norm, dropout):
        return net(hidden, classes, dropout)
