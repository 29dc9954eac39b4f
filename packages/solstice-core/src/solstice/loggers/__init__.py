"""Loggers: callbacks that write the metrics of a run for other tools.

```python
trainer = solstice.Trainer([
    solstice.loggers.CSV("runs/a.csv"),
    solstice.loggers.TensorBoard("runs/a", every=50),
])
```

Each writes in a background thread, and finishes after an exception too. A resumed run continues in
the same place, without duplicate rows. `solstice.callbacks.Logging` calls a function; for any other
tool, subclass `Logger`.
"""

from solstice.loggers._files import CSV, JSONLines
from solstice.loggers._logger import Logger, Start
from solstice.loggers._mlflow import MLflow
from solstice.loggers._tensorboard import TensorBoard
from solstice.loggers._wandb import WandB

__all__ = ["CSV", "JSONLines", "Logger", "MLflow", "Start", "TensorBoard", "WandB"]
