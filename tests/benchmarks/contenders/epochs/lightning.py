"""Lightning: one `fit` of many epochs with their validations; no logger or progress bar."""

from typing import Any

from contenders.lightning import Module, trainer
from torch.utils.data import DataLoader
from workloads import Workload


class Validated(Module):
    def validation_step(self, batch: Any, index: int) -> None:
        loss, accuracy = self.measure(batch)
        values = {"val_loss": loss, "val_accuracy": accuracy}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch[1]))


def make(workload: Workload, **options: Any) -> Any:
    module = Validated(workload)
    runs = trainer(num_sanity_val_steps=0, **options)
    validation = DataLoader(workload.validation, batch_size=None)

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        first = len(batches) == 1  # the first step, without a validation
        runs.fit_loop.max_epochs += 1 if first else workload.epochs
        data = DataLoader(batches, batch_size=None)
        runs.fit(module, data, None if first else validation)
        return {name: value.item() for name, value in runs.callback_metrics.items()}

    return run_epoch
