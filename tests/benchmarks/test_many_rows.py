"""`many_rows.py` runs, and reads its rows alone."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "many_rows.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_shuffled_batches_of_very_many_rows_take_little_memory(tmp_path: Path):
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    head, *rows, last = printed.splitlines()
    assert head == "10,000,000,000 rows of 1 bytes, batches of 32"
    assert [row[:26].strip() for row in rows] == [
        "the first batch",
        "to the middle of epoch 7",
        "1,000 batches",
    ]
    name, megabytes, unit = last.rsplit(maxsplit=2)
    assert (name, unit) == ("peak memory", "MB")
    assert float(megabytes) < 50
    assert not any(tmp_path.iterdir())
