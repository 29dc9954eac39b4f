"""Lightning: a LightningModule that logs by epoch; no logger, checkpoints or progress bar."""

import logging
import warnings
from typing import Any

import lightning
import torch
from models import torch as models
from torch.utils.data import DataLoader
from workloads import LEARNING_RATE, Workload


class Module(lightning.LightningModule):
    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.model = models.build(workload)
        self.adam = torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)

    def measure(self, batch: Any) -> Any:
        x, y = batch
        return models.loss_and_accuracy(self.model(x), y)

    def training_step(self, batch: Any, index: int) -> Any:
        loss, accuracy = self.measure(batch)
        values = {"loss": loss, "accuracy": accuracy}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch[1]))
        return loss

    def configure_optimizers(self) -> Any:
        return self.adam  # the same in each `fit`, so that its moments go on


def trainer(**options: Any) -> lightning.Trainer:
    """A Trainer that shows and writes nothing; its epochs are added by `fit_loop.max_epochs`."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return lightning.Trainer(max_epochs=0, **{"accelerator": "cpu", **quiet, **options})


def make(workload: Workload, **options: Any) -> Any:
    module = Module(workload)
    runs = trainer(**options)

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        runs.fit_loop.max_epochs += 1
        runs.fit(module, DataLoader(batches, batch_size=None))
        return {name: value.item() for name, value in runs.callback_metrics.items()}

    return run_epoch
