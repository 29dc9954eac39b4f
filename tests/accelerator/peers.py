"""The parts "torch-A" to "torch-E": PyTorch, compiled, and Lightning, on the same data.

Their ratios, which run.py adds, are to the medians of the parts "A" to "E", which ran before.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

MOST_ROUNDS = 5


def run(task: Any) -> None:
    try:
        import torch
    except ImportError:
        task.add("PyTorch", value="not installed")
        return
    workload = task.workload(task.name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for title, make in CONTENDERS.items():
        try:
            run_epoch = make(workload, device)
            run_epoch(workload.batches[:1])
            seconds = timed(run_epoch, workload, 1 if task.small else MOST_ROUNDS, task.deadline)
        except ImportError as error:
            task.add(title, value=f"{error.name} is not installed")
            continue
        per_unit = 1e3 * statistics.median(seconds) / workload.units
        task.add(title, value=f"{per_unit:.3f} ms per {workload.unit}", seconds=seconds)


def timed(run_epoch: Any, workload: Any, rounds: int, deadline: float) -> list[float]:
    """Seconds of each round after one that warms up, until the deadline."""
    found: list[float] = []
    for _ in range(1 + rounds):
        began = time.perf_counter()
        run_epoch(workload.batches)
        found.append(time.perf_counter() - began)
        if time.monotonic() > deadline:
            break
    return found[1:] or found


def compiled(workload: Any, device: Any) -> Callable[[Any], Any]:
    """`torch.compile` of the forward pass with its loss; losses are read once an epoch."""
    import torch
    from models import torch as models
    from workloads import LEARNING_RATE

    model = models.build(workload).to(device)
    adam = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    measure = torch.compile(lambda x, y: models.loss_and_accuracy(model(x), y))

    def put(batch: Any) -> Any:
        return [torch.from_numpy(array).to(device, non_blocking=True) for array in batch]

    def train(batches: list[Any]) -> Any:
        total = torch.zeros((), device=device)
        for batch in batches:
            loss, _ = measure(*put(batch))
            adam.zero_grad()
            loss.backward()
            adam.step()
            total = total + loss.detach()
        return total.item() / len(batches)

    def validate() -> Any:
        with torch.no_grad():
            return sum(measure(*put(batch))[0] for batch in workload.validation)

    def run_epoch(batches: list[Any]) -> Any:
        for _ in range(1 if len(batches) == 1 else workload.epochs):
            loss = train(batches)
            if workload.validation:
                float(validate())
        return loss

    return run_epoch


def lightning(workload: Any, device: Any) -> Callable[[Any], Any]:
    """Its `fit`, as in the benchmark for the CPU, on the device that it chooses."""
    from contenders import lightning as plain
    from contenders.epochs import lightning as validated

    accelerator = "gpu" if device.type == "cuda" else "cpu"
    options = {"accelerator": accelerator, "devices": 1}
    return (validated if workload.validation else plain).make(workload, **options)


CONTENDERS = {"Lightning": lightning, "PyTorch, `torch.compile`": compiled}
"""The slowest to compile comes last, since the time may end there."""
