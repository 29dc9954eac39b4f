"""The example as the training loop of Ray Train: `python on_ray.py EXAMPLE FOLDER DIE_AT`.

One of two workers dies at step DIE_AT, once; at 0, none does.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import ray.train
from ray.train.v2.jax import JaxTrainer
from ray.train.v2.jax.config import JaxConfig


def loop(config: dict[str, Any]) -> None:
    """The training loop of a worker."""
    sys.path.insert(0, str(Path(config["example"]).parent))
    import jax
    import many_processes

    import solstice

    folder, me = Path(config["folder"]), jax.process_index()

    class Dies(solstice.Callback):
        def on_step_end(self, record: solstice.Record) -> None:
            if (me, record.step) == (1, config["die_at"]) and not (folder / "died").exists():
                (folder / "died").touch()
                os._exit(1)

    class Reports(solstice.Callback):
        modes = ("val",)

        def on_epoch_end(self, record: solstice.Record) -> None:
            ray.train.report(dict(record.metrics))

    summary = many_processes.summary(*many_processes.train([Dies(), Reports()]))
    (folder / f"worker-{me}.json").write_text(json.dumps(summary))


class Writes(ray.train.UserCallback):
    """Writes what the workers report, in the process of Ray's controller."""

    def __init__(self, path: str) -> None:
        self.path = path

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps([one["loss"] for one in metrics]) + "\n")


def main(example: str, folder: str, die_at: str) -> None:
    ray.init(num_cpus=2, include_dashboard=False)
    JaxTrainer(
        loop,
        train_loop_config={"example": example, "folder": folder, "die_at": int(die_at)},
        jax_config=JaxConfig(use_gpu=True),  # else Ray does not connect workers without a GPU
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(
            storage_path=folder,
            callbacks=[Writes(f"{folder}/reported.jsonl")],
            failure_config=ray.train.FailureConfig(max_failures=1),
            worker_runtime_env={"env_vars": {"JAX_PLATFORMS": "cpu"}},
        ),
    ).fit()


if __name__ == "__main__":
    main(*sys.argv[1:])
