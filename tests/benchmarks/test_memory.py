"""`memory.py` runs, with a state that says nothing of memory."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("optax")
pytest.importorskip("safetensors")
SCRIPT = Path(__file__).parent / "memory.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_it_prints_a_row_for_each_state(tmp_path: Path):
    options = ["--megabytes", "12", "--arrays", "2", "--folder", str(tmp_path)]
    command = [sys.executable, str(SCRIPT), *options]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    _, head, row = printed.splitlines()
    assert head.split()[-1] == "fit"
    assert row.startswith("6 arrays")
    assert row.count("(") == 3
    assert not any(tmp_path.iterdir())
