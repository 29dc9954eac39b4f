"""Testing: public conformance suites for adapters and metrics, and tests of resume and parity.

```python
import toynet
from solstice.testing import ModelConformance

class TestToynet(ModelConformance):
    unsupported = {"batch_norm": "toynet has no BatchNorm"}

    def build(self, *, hidden, classes, batch_norm, dropout):
        return toynet.Net(hidden, classes, dropout)
```

`MetricsConformance` does the same for metrics. `verify_resume` kills your run, resumes it, and
compares the result. `solstice.testing.parity` trains one net in several frameworks.
`pip install "./packages/solstice-core[testing]"` installs pytest and hypothesis. The import
configures JAX with two CPU devices, unless JAX has started already.
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
