"""`solstice.testing`: the public suites that adapters and metrics pass.

```python
import toynet
from solstice.testing import ModelConformance

class TestToynet(ModelConformance):
    unsupported = {"batch_norm": "toynet has no BatchNorm"}

    def build(self, *, hidden, classes, batch_norm, dropout):
        return toynet.Net(hidden, classes, dropout)
```

`MetricsConformance` is the same for metrics. `verify_resume` kills a run of yours, resumes it, and
compares. `solstice.testing.parity` trains one net in several frameworks.
`pip install "solstice-core[testing]"` brings pytest and hypothesis. Importing this asks JAX for two
CPU devices, where JAX has not started yet.
"""

from solstice.testing._metrics import MetricsConformance
from solstice.testing._model import ModelConformance
from solstice.testing._optimizer import OptimizerConformance
from solstice.testing._parts import Linear, Sgd, blobs
from solstice.testing._resume import Run, verify_resume

__all__ = [
    "Linear",
    "MetricsConformance",
    "ModelConformance",
    "OptimizerConformance",
    "Run",
    "Sgd",
    "blobs",
    "verify_resume",
]
