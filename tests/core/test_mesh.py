"""Runs on a mesh. Most tests need eight devices, so a process of their own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import solstice

TESTS = Path(__file__).parent / "mesh_on_eight.py"


@pytest.mark.slow
def test_on_eight_devices():
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS)],
        env={**os.environ, "XLA_FLAGS": flags},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"mesh": 0}, ValueError, "1 device or more"),
        ({"mesh": "al"}, TypeError, '"all", a number'),
        ({"mesh": True}, TypeError, '"all", a number'),
        ({"mesh": 2.0}, TypeError, '"all", a number'),
        ({"sharding": "fsdp"}, ValueError, r'write Trainer\(mesh="all", sharding=\'fsdp\'\)'),
        ({"mesh": 1, "sharding": "fdsp"}, ValueError, "one of 'replicated', 'fsdp'"),
        ({"mesh": 1, "sharding": 3}, TypeError, "sharding must be"),
        ({"mesh": 1, "sharding": {1: "fsdp"}}, TypeError, "path patterns"),
        ({"mesh": 1, "sharding": {"*": ("data",)}}, TypeError, "PartitionSpec"),
    ],
)
def test_wrong_options_are_named_by_the_trainer(options: Any, error: Any, said: str):
    with pytest.raises(error, match=said):
        solstice.Trainer(**options)
