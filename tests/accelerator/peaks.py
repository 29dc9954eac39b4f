"""The part "memory": the most memory that a state of 300 MB takes in training, of each contender.

Each runs in a process of its own, since a device never forgets its peak.
"""

import inspect
import json
import subprocess
import sys
from typing import Any

CONTENDERS = {
    "hand_written": "loop by hand, donated",
    "fit": "`fit`",
    "donate": "`fit(donate=True)`",
}


def run(task: Any) -> None:
    first: float | None = None
    for name, title in CONTENDERS.items():
        command = [sys.executable, __file__, name, *(["--small"] if task.small else [])]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        if found["peak"] is None:
            task.add(title, value=found["why"])
            continue
        first = first or found["peak"]
        task.add(
            f"{title}, {found['state'] / 1e6:.0f} MB of state",
            value=f"{found['peak'] / 1e6:.0f} MB",
            limit=f"{found['peak'] / found['state']:.2f} x the state",
            by_hand=f"{found['peak'] / first:.2f} x by hand",
        )


def peak(name: str, steps: int | None) -> dict[str, Any]:
    """The peak of two epochs, in bytes, with the state that it starts from."""
    import jax
    import workloads

    workload = workloads.get("F-layers", steps)
    state = 3 * sum(x.nbytes for x in jax.tree.leaves(workload.params))  # and Adam's moments
    try:
        run_epoch = make(name, workload)
    except workloads.NotHereError:
        return {"peak": None, "why": "not in this version"}
    for _ in range(2):
        run_epoch(workload.batches)
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" not in stats:
        return {"peak": None, "why": f"not known on {jax.devices()[0].platform}"}
    return {"peak": stats["peak_bytes_in_use"], "state": state}


def make(name: str, workload: Any) -> Any:
    """What trains one epoch."""
    import workloads
    from contenders import hand_written
    from models.solstice import Training

    import solstice

    if name == "hand_written":
        return hand_written.make(workload)
    options = {"donate": True} if name == "donate" else {}
    if not set(options) <= set(inspect.signature(solstice.Trainer.fit).parameters):
        raise workloads.NotHereError
    trainer, experiments = solstice.Trainer(), [Training(workload)]

    def run_epoch(batches: list[Any]) -> None:
        # No name holds the one before, as in `exp = trainer.fit(exp, ...)`.
        experiments.append(trainer.fit(experiments.pop(), batches, **options))

    return run_epoch


if __name__ == "__main__":
    print(json.dumps(peak(sys.argv[1], 2 if "--small" in sys.argv else 16)))
