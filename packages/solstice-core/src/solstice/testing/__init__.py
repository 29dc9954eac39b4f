"""`solstice.testing`: the public suite that an adapter passes.

```python
import toynet
from solstice.testing import ModelConformance

class TestToynet(ModelConformance):
    lacks = {"batch_norm": "toynet has no BatchNorm"}

    def build(self, *, hidden, classes, batch_norm, dropout):
        return toynet.Net(hidden, classes, dropout)
```

`pip install "solstice-core[testing]"` brings pytest. Importing this asks JAX for two CPU devices,
where JAX has not started yet.
"""

from solstice.testing._model import ModelConformance
from solstice.testing._optimizer import OptimizerConformance
from solstice.testing._parts import Linear, Sgd, blobs

__all__ = ["Linear", "ModelConformance", "OptimizerConformance", "Sgd", "blobs"]
