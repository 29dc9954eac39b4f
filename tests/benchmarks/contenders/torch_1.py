"""PyTorch with one thread: its tutorials' loop; the losses are read at the end of an epoch."""

from typing import Any

import torch
from models import torch as models
from workloads import LEARNING_RATE, Workload


def make(workload: Workload) -> Any:
    torch.set_num_threads(1)
    model = models.build(workload)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        total_loss = total_accuracy = torch.zeros(())
        for x, y in batches:
            loss, accuracy = models.loss_and_accuracy(
                model(torch.from_numpy(x)), torch.from_numpy(y)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total_loss = total_loss + loss.detach()
            total_accuracy = total_accuracy + accuracy
        steps = len(batches)
        return {"loss": total_loss.item() / steps, "accuracy": total_accuracy.item() / steps}

    return run_epoch
