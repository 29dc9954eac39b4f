"""The example under SLURM, without an argument. `nox -s slurm` runs this.

The cluster is this machine: munged, slurmctld and slurmd of their own, which end with the tests.
"""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import launched
import pytest
from peers import free_port

HOST = socket.gethostname().split(".")[0]

CONFIG = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control_port}
SlurmdPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes=ALL Default=YES
"""


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster of this machine, for the commands of a test."""
    folder = tmp_path_factory.mktemp("slurm")
    config = folder / "slurm.conf"
    ports = {"control_port": free_port(), "port": free_port()}
    config.write_text(CONFIG.format(folder=folder, host=HOST, **ports))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key, at = folder / "munge.key", folder / "munge"
    launched.run("mungekey", "--create", f"--keyfile={key}")
    munge = [f"--key-file={key}", f"--socket={at}.socket", f"--pid-file={at}.pid"]
    munge += [f"--log-file={at}.log", f"--seed-file={at}.seed"]
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(config))
        daemon = stack.enter_context
        daemon(running(folder, "munged", "--foreground", "--force", *munge))
        daemon(running(folder, "slurmctld", "-D"))
        daemon(running(folder, "slurmd", "-D", "-N", HOST))
        wait_for_node(folder)
        yield
        launched.run("scancel", "--user=root")  # jobs outlive the daemons


@contextmanager
def running(folder: Path, *command: str) -> Iterator[None]:
    """A daemon in the foreground, which ends with the block."""
    with (folder / f"{command[0]}.out").open("w") as output:
        daemon = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            daemon.terminate()
            daemon.wait(30)


def wait_for_node(folder: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        state = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True)
        if state.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    text = "\n".join(path.read_text() for path in sorted(folder.glob("*.out")))
    pytest.fail(f"SLURM has not started:\n{state}\n{text}")


def test_two_tasks_have_the_history_of_one_process():
    printed = launched.run("srun", "-n", "2", "--overcommit", *launched.PYTHON)
    launched.assert_same_history(launched.summary(printed), processes=2)


def test_a_batch_job_has_it_too(tmp_path: Path):
    command = f"srun --overcommit {' '.join(launched.PYTHON)}"
    output = tmp_path / "output.txt"
    job = ["sbatch", "--wait", "-n", "2", "--overcommit", f"--output={output}", "--wrap", command]
    launched.run(*job)
    launched.assert_same_history(launched.summary(output.read_text()), processes=2)


def test_one_task_is_alone():
    printed = launched.run("srun", "-n", "1", *launched.PYTHON)
    assert launched.summary(printed) == launched.alone()


def test_a_job_without_srun_says_what_to_do():
    printed = launched.run("salloc", "-n", "2", "--overcommit", *launched.PYTHON, code=1)
    assert "but is not one of its tasks" in printed
    assert "start it with `srun python train.py`" in printed
