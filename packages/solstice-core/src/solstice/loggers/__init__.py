"""`solstice.loggers`: callbacks that write the metrics of a run where other tools read them.

```python
trainer = solstice.Trainer([
    solstice.loggers.CSV("runs/a.csv"),
    solstice.loggers.TensorBoard("runs/a", every=50),
])
```

Each writes in the background, also what there was before an exception, and goes on in the same
place when a run is resumed, with no row twice. `solstice.callbacks.Logging` calls a function; for a
tool that is not here, subclass `Logger`.
"""

from solstice.loggers._files import CSV, JSONLines
from solstice.loggers._logger import Logger, Start
from solstice.loggers._mlflow import MLflow
from solstice.loggers._tensorboard import TensorBoard
from solstice.loggers._wandb import WandB

__all__ = ["CSV", "JSONLines", "Logger", "MLflow", "Start", "TensorBoard", "WandB"]
