"""Launchers: what the environment says about other processes, and how to start with each."""

import os
from collections.abc import Callable
from dataclasses import dataclass

_SLURM = ("SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
"""What JAX reads of SLURM, besides the number of the job."""

_MPI4PY = (
    "has started this process, and JAX needs mpi4py to use it: `pip install mpi4py`, and write "
    '`solstice.distributed.initialize(cluster_detection_method="mpi4py")`'
)


def _slurm() -> str:
    missing = ", ".join(name for name in _SLURM if name not in os.environ)
    return (
        f"this process is in SLURM job {os.environ['SLURM_JOB_ID']} but is not one of its tasks, "
        f"since {missing or 'SLURM'} is not set: start it with `srun python train.py`"
    )


def _torch() -> str:
    return (
        "MASTER_ADDR is set, as by torchrun, which JAX does not read: write "
        "`solstice.distributed.initialize(f\"{os.environ['MASTER_ADDR']}:1234\", "
        'int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"]))`'
    )


@dataclass(frozen=True)
class _Launcher:
    """A launcher of processes.

    Args:
        sign: the variable that shows it.
        size: the variable with the number of processes or their names, or "".
        advice: what to do if JAX did not detect it.
    """

    sign: str
    size: str
    advice: Callable[[], str]

    def is_here(self) -> bool:
        """Whether its sign is set, and it does not say that this process is alone."""
        return self.sign in os.environ and _count(os.environ.get(self.size)) != 1


def _count(text: str | None) -> int | None:
    """2 for "2" and for "host-a,host-b"; None if nothing is known."""
    if not text:
        return None
    return int(text) if text.isdigit() else len(text.split(","))


_LAUNCHERS = (
    _Launcher("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", lambda: f"Open MPI {_MPI4PY}"),
    _Launcher("SLURM_JOB_ID", "SLURM_NTASKS", _slurm),
    _Launcher("PMI_SIZE", "PMI_SIZE", lambda: f"MPI {_MPI4PY}"),
    _Launcher(
        "JOB_COMPLETION_INDEX",
        "",
        lambda: (
            "this is an indexed Job of Kubernetes, which JAX detects with `pip install jax[k8s]`"
        ),
    ),
    _Launcher(
        "TPU_WORKER_HOSTNAMES",
        "TPU_WORKER_HOSTNAMES",
        lambda: "this is a Cloud TPU, which JAX detects with `pip install jax[tpu]`",
    ),
    _Launcher("MASTER_ADDR", "WORLD_SIZE", _torch),
    _Launcher(
        "JAX_COORDINATOR_ADDRESS",
        "",
        lambda: "JAX_COORDINATOR_ADDRESS is set: give num_processes=... and process_id=... too",
    ),
)


def clue() -> str | None:
    """What to do with the launcher that the environment shows, or None if it shows none."""
    return next((launcher.advice() for launcher in _LAUNCHERS if launcher.is_here()), None)
