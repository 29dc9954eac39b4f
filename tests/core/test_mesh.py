"""Runs on a mesh. Most tests need eight devices, so a process of their own."""

from pathlib import Path
from typing import Any

import pytest
from mesh_tests import run_on_eight

import solstice


@pytest.mark.slow
def test_on_eight_devices():
    run_on_eight(Path(__file__).with_name("mesh_on_eight.py"))


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"mesh": 0}, ValueError, "1 device or more"),
        ({"mesh": "al"}, TypeError, '"all", a number'),
        ({"mesh": True}, TypeError, '"all", a number'),
        ({"mesh": 2.0}, TypeError, '"all", a number'),
        ({"sharding": "fsdp"}, ValueError, r'write Trainer\(mesh="all", sharding=\'fsdp\'\)'),
        ({"mesh": 1, "sharding": "fdsp"}, ValueError, 'must be "replicated", "fsdp"'),
        ({"mesh": 1, "sharding": 3}, TypeError, "sharding must be"),
        ({"mesh": 1, "sharding": {1: "fsdp"}}, TypeError, "path patterns"),
        ({"mesh": 1, "sharding": {"*": ("data",)}}, TypeError, "PartitionSpec"),
    ],
)
def test_wrong_options_are_named_by_the_trainer(options: Any, error: Any, said: str):
    with pytest.raises(error, match=said):
        solstice.Trainer(**options)
