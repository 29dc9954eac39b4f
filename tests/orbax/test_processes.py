"""Checkpoints of two processes: saved, killed, and loaded by any number of processes."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import two_processes as two

import solstice
from solstice import checkpoint
from solstice.checkpoint import CheckpointError, _orbax
from solstice.checkpoint._files import seal

try:
    _orbax.check_installed()
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.slow


def start(scenario: str, folder: Path, *more: str) -> list[subprocess.Popen[str]]:
    """Both processes, with two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-W", "error", two.__file__]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    return [
        subprocess.Popen(
            [*command, scenario, address, str(index), str(folder), *more],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in (0, 1)
    ]


def ended(processes: list[subprocess.Popen[str]], seconds: float = 120) -> list[str]:
    """What both have printed; kills them after some time."""
    printed: list[str] = []
    for process in processes:
        try:
            printed.append(process.communicate(timeout=seconds)[0])
        except subprocess.TimeoutExpired:
            process.kill()
            printed.append(process.communicate()[0])
    return printed


def run(scenario: str, folder: Path, *more: str) -> list[str]:
    processes = start(scenario, folder, *more)
    printed = ended(processes)
    assert [p.returncode for p in processes] == [0, 0], "\n".join(x[-3000:] for x in printed)
    return printed


def same(path: Path, seed: int) -> bool:
    """Whether a checkpoint is whole, and has the state of a seed."""
    loaded = checkpoint.load(path, like=two.state(None, 99))
    return checkpoint.diff(loaded, two.state(None, seed)) == {}


# Orbax leaves its event loop unfinished when it cannot read a file.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_processes_save_and_load_what_any_number_can(tmp_path: Path):
    checkpoint.save(tmp_path / "one", two.state(None))
    run("everything", tmp_path)
    assert same(tmp_path / "a", 0)
    about = checkpoint.manifest(tmp_path / "a")
    assert about["note"] == {"epoch": 3}
    have = {name for name, leaf in about["leaves"].items() if "sha256" in leaf}
    without = {"rows", "half", "['a/b']/../c", "keys"}  # those that are split
    assert set(about["leaves"]) - have == {f"['of'][{name!r}]" for name in without}
    by_one = checkpoint.manifest(tmp_path / "one")
    for name in have:
        assert about["leaves"][name]["sha256"] == by_one["leaves"][name]["sha256"]
    assert about["described"] == by_one["described"]

    one_device = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    two.check_same(
        checkpoint.load(tmp_path / "a", like=two.state(one_device, 5)), two.state(one_device)
    )
    check_that_damage_is_found(tmp_path / "a")


def check_that_damage_is_found(path: Path) -> None:
    text = (path / "manifest.json").read_text()
    changes = [({"sha256": "0" * 64}, "checksum"), ({"shape": [4]}, "in the manifest")]
    for change, words in changes:
        about: dict[str, Any] = json.loads(text.split("\n", 1)[1])
        about["leaves"]["['of']['whole']"].update(change)
        (path / "manifest.json").write_text(seal(about))
        like = two.state(None)
        like["of"]["whole"] = jnp.zeros(about["leaves"]["['of']['whole']"]["shape"])
        with pytest.raises(CheckpointError, match=words):
            checkpoint.load(path, like=like)
    (path / "manifest.json").write_text(text)
    assert same(path, 0)
    for file in path.glob("arrays.orbax/**/d/*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        same(path, 0)


def test_a_process_that_does_not_come_is_named(tmp_path: Path):
    run("absent", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_shares_of_data_are_resumed_by_as_many_processes(tmp_path: Path):
    run("shared", tmp_path)
    said = "read by 1 processes with a share each, and the saved run had 2 processes with a share"
    with pytest.raises(solstice.DataError, match=said):
        two.fit_shares(tmp_path / "7", None, 0)
    said = "read by processes that read all of it, and the saved run had 2 processes with a share"
    with pytest.raises(solstice.DataError, match=said):
        two.fit(tmp_path / "7", None)


def test_a_run_of_two_processes_saves_and_is_resumed_by_any_number(tmp_path: Path):
    two.fit(tmp_path / "one", None, 7)
    run("trained", tmp_path)
    alone = two.fit(tmp_path / "alone", None)
    for path in sorted((tmp_path / "cut").iterdir()):
        assert not list(path.glob(".*"))
    said = r"4 devices in 2 processes \(split\) of kind cpu, and this is 1 device"
    shutil.rmtree(tmp_path / "cut" / "step-10")
    with pytest.raises(CheckpointError, match=said):
        two.fit(tmp_path / "cut", None)
    with pytest.warns(UserWarning, match=said):
        resumed = two.fit(tmp_path / "cut", None, strict=False)
    np.testing.assert_allclose(resumed.w, alone.w, rtol=1e-5)
    assert checkpoint.diff(resumed.key, alone.key) == {}


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """How many operations each process has at which it can be killed."""
    printed = run("killed", tmp_path_factory.mktemp("counted"), "0", "1000000")
    return [int(text.split("[")[-2].split()[-1]) for text in printed]


PARTS = [(0, i / 8) for i in range(8)] + [(1, i / 3) for i in range(3)]


@pytest.mark.parametrize(("who", "part"), PARTS)
def test_a_kill_at_any_moment_leaves_whole_checkpoints(
    tmp_path: Path, operations: list[int], who: int, part: float
):
    check_kill(tmp_path, who, str(int(operations[who] * part) + 1))


@pytest.mark.parametrize(("who", "seconds"), [(0, 0.001), (1, 0.03), (0, 0.1)])
def test_a_kill_while_orbax_writes_leaves_whole_checkpoints(
    tmp_path: Path, who: int, seconds: float
):
    check_kill(tmp_path, who, str(seconds))


def check_kill(folder: Path, who: int, at: str) -> None:
    processes = start("killed", folder, str(who), at)
    processes[who].communicate(timeout=60)
    assert processes[who].returncode == -9
    ended([processes[1 - who]], 1)  # what the other does meanwhile
    assert same(folder / "step-1", 1) or same(folder / "step-1", 3)
    if checkpoint.exists(folder / "step-2"):
        assert same(folder / "step-2", 2)
    checkpoint.sweep(folder, ["step-1", "step-2"])
    assert {path.name for path in folder.iterdir()} <= {"step-1", "step-2"}
    checkpoint.save(folder / "step-2", two.state(None, 4))
    assert same(folder / "step-2", 4)
