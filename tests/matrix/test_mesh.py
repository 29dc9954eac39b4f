"""The history of networks and optimisers of several frameworks, on meshes of 1 and 2 processes."""

from pathlib import Path

import pytest
from mesh_tests import run_on_eight


@pytest.mark.slow
def test_on_eight_devices():
    run_on_eight(Path(__file__).with_name("mesh_on_eight.py"))
