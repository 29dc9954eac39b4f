"""Connecting processes, and whole arrays of several, with real processes over loopback."""

import re
from typing import Any

import jax
import numpy as np
import pytest
from jax._src import distributed as jax_distributed
from peers import Ended, run

from solstice import _service

ALONE = """
import jax, numpy as np, os, signal
for name in [n for n in os.environ if n.startswith(("SLURM", "OMPI", "PMI", "JAX_COORD"))]:
    del os.environ[name]

def tried(*arguments, **variables):
    os.environ.update(variables)
    try:
        return error_of(distributed.initialize, *arguments)
    finally:
        for name in variables:
            del os.environ[name]

def show_tried(name):
    show(name, {
        "nothing": tried(),
        "one": tried(None, 1),
        "part": tried(None, 4),
        "no port": tried("host", 4, 1),
        "ssh": tried(SLURM_JOB_ID="7"),
        "no srun": tried(SLURM_JOB_ID="7", SLURM_NTASKS="2", SLURM_PROCID="0", SLURM_LOCALID="0"),
        "one task": tried(SLURM_JOB_ID="7", SLURM_NTASKS="1"),
        "mpich": tried(PMI_SIZE="2", PMI_RANK="0"),
        "one of mpich": tried(PMI_SIZE="1", PMI_RANK="0"),
        "openmpi": tried(OMPI_COMM_WORLD_SIZE="2"),
        "kubernetes": tried(JOB_COMPLETION_INDEX="0"),
        "torchrun": tried(MASTER_ADDR="a", WORLD_SIZE="2", RANK="0"),
        "one of torchrun": tried(MASTER_ADDR="a", WORLD_SIZE="1", RANK="0"),
        "one tpu": tried(TPU_WORKER_HOSTNAMES="localhost"),
        "tpus": tried(TPU_WORKER_HOSTNAMES="a,b"),
        "address": tried(JAX_COORDINATOR_ADDRESS="a:1"),
    })

show_tried("before")
jax.devices()
show_tried("after")
show("late", error_of(distributed.initialize, "127.0.0.1:1", 2, 0))
tree = {"a": np.arange(3), "b": jax.numpy.ones(2), "key": jax.random.key(3), "text": "x", "n": None}
got = distributed.gather(tree)
show("gather", [type(got[name]).__name__ for name in tree])
"""


@pytest.fixture(scope="module")
def alone() -> Ended:
    [ended] = run(ALONE, count=1)
    assert ended.code == 0, ended.output
    return ended


@pytest.mark.parametrize(
    "name", ["nothing", "one", "one task", "one of mpich", "one of torchrun", "one tpu"]
)
def test_nothing_happens_where_a_process_is_alone(alone: Ended, name: str):
    assert alone.shown["before"][name] is None
    assert alone.shown["after"][name] is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("part", "coordinator_address and process_id not given"),
        ("ssh", "SLURM job 7 .* SLURM_STEP_NODELIST, SLURM_NTASKS, SLURM_PROCID, SLURM_LOCALID is"),
        ("no srun", "since SLURM_STEP_NODELIST is not set: start it with `srun python train.py`"),
        ("mpich", 'cluster_detection_method="mpi4py"'),
        ("openmpi", "(?i)mpi4py"),
        ("kubernetes", r"pip install jax\[k8s\]"),
        ("torchrun", "MASTER_ADDR"),
        ("tpus", r"pip install jax\[tpu\]"),
        ("address", "num_processes and process_id|give num_processes"),
    ],
)
def test_a_sign_of_other_processes_is_named(alone: Ended, name: str, says: str):
    kind, text = alone.shown["before"][name]
    assert kind == "RuntimeError"
    assert re.search(says, text)
    if name != "openmpi":  # where newer versions of JAX raise their own
        assert "No cluster found" in text
        assert "coordinator_address=..., num_processes=..., process_id=..." in text
    kind, text = alone.shown["after"][name]
    assert kind == "RuntimeError"
    assert "the first line after the imports" in text


def test_an_address_needs_a_port(alone: Ended):
    error = ["ValueError", "coordinator_address must be \"host:port\", not 'host'"]
    assert alone.shown["before"]["no port"] == error


def test_processes_connect_before_anything_else(alone: Ended):
    kind, text = alone.shown["late"]
    assert kind == "RuntimeError"
    assert "Make `solstice.distributed.initialize()` the first line after the imports" in text


def test_gather_in_one_process(alone: Ended):
    assert alone.shown["gather"] == ["ndarray", "ndarray", "PRNGKeyArray", "str", "NoneType"]


TWO = """
import os, signal
handled = []
if me == 1:
    signal.signal(signal.SIGTERM, lambda *_: handled.append(1))
connect()
connect()
distributed.initialize()
show("other", error_of(distributed.initialize, None, 3))
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from solstice._agreement import agreement, Word

mesh = Mesh(np.array(jax.devices()), ("data",))
whole = np.arange(16.0).reshape(4, 4)
def spread(x, *spec):
    return jax.make_array_from_callback(x.shape, NamedSharding(mesh, P(*spec)), lambda i: x[i])
keys = jax.random.split(jax.random.key(5), 4)
tree = {
    "rows": spread(whole, "data"),
    "columns": spread(whole, None, "data"),
    "all": spread(whole),
    "keys": jax.random.wrap_key_data(spread(np.asarray(jax.random.key_data(keys)), "data")),
    "local": jax.numpy.ones(2),
    "text": "x",
}
got = distributed.gather(tree)
show("types", [type(got[name]).__name__ for name in tree])
show("values", [got[k].tolist() for k in ("rows", "columns", "all")])
show("keys", bool((jax.random.key_data(got["keys"]) == jax.random.key_data(keys)).all()))
show("usable", float(jax.random.normal(got["keys"][1])) == float(jax.random.normal(keys[1])))
show("elsewhere", error_of(distributed.gather, tree) if me else error_of(agreement().barrier, "x"))
if me == 1:
    os.kill(os.getpid(), signal.SIGTERM)
    show("handled", handled)
agreement().barrier("handled")
if me == 0:
    os.kill(os.getpid(), signal.SIGTERM)
while not (agreed := agreement().agree(Word(1, phase="wait"))).signal:
    time.sleep(0.01)
show("agreed", [agreed.signal, agreed.by])
"""


@pytest.fixture(scope="module")
def two() -> list[Ended]:
    ended = run(TWO)
    assert [one.code for one in ended] == [0, 0], [one.output for one in ended]
    return ended


def test_a_second_call_changes_nothing(two: list[Ended]):
    for one in two:
        kind, text = one.shown["other"]
        assert kind == "RuntimeError"
        assert "num_processes=2" in text
        assert "num_processes=3" in text


def test_gather_gives_whole_arrays_on_each(two: list[Ended]):
    whole = np.arange(16.0).reshape(4, 4).tolist()
    for one in two:
        assert one.shown["types"] == [*["ndarray"] * 3, "PRNGKeyArray", "ndarray", "str"]
        assert one.shown["values"] == [whole] * 3
        assert one.shown["keys"]
        assert one.shown["usable"]


def test_a_gather_of_one_alone_is_an_error(two: list[Ended]):
    for one in two:
        kind, text = one.shown["elsewhere"]
        assert kind == "PeerMismatch"
        assert "process 1 is at barrier 'gather of 3 arrays'" in text


def test_a_sigterm_goes_to_the_handler_of_the_user(two: list[Ended]):
    assert two[1].shown["handled"] == [1]


def test_a_sigterm_before_a_run_reaches_all(two: list[Ended]):
    assert [one.shown["agreed"] for one in two] == [[15, None]] * 2


def test_the_private_names_of_jax_are_where_we_look():
    state: Any = jax_distributed.global_state
    assert {"client", "process_id", "num_processes", "coordinator_address"} <= set(dir(state))
    assert callable(state.initialize)
    assert (_service.client() is None) == (not jax.distributed.is_initialized())
