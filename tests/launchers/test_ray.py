"""The example as the training loop of Ray Train's `JaxTrainer`. `nox -s ray` runs this.

Ray connects the workers, and starts all of them again after one has died.
"""

import json
import sys
from pathlib import Path
from typing import Any

import launched
import pytest

ON_RAY = Path(__file__).parent / "on_ray.py"


def on_ray(folder: Path, die_at: int = 0) -> None:
    folder.mkdir()
    launched.run(*map(str, [sys.executable, ON_RAY, launched.EXAMPLE, folder, die_at]))


def summary(folder: Path) -> dict[str, Any]:
    """The summary of the example, which is that of both workers."""
    first, second = (json.loads((folder / f"worker-{i}.json").read_text()) for i in (0, 1))
    assert first == second
    return first


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("ray") / "undisturbed"
    on_ray(folder)
    return folder


def test_two_workers_have_the_history_of_one_process_and_report_it(undisturbed: Path):
    found = summary(undisturbed)
    launched.assert_same_history(found, processes=2)
    reported = (undisturbed / "reported.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in reported] == [[x, x] for x in found["val/loss"]]


def test_after_one_was_killed_both_start_again_and_end_with_the_same_weights(
    undisturbed: Path, tmp_path: Path
):
    on_ray(tmp_path / "killed", die_at=10)
    assert (tmp_path / "killed/died").exists()
    assert summary(tmp_path / "killed") == summary(undisturbed)
