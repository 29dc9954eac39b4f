"""The script for an accelerator runs, small, on the CPU, and says when something fails."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.append(str(HERE))  # where run.py finds what it imports


def load(name):
    """A file beside this one; tests/benchmarks has a run.py too."""
    spec = importlib.util.spec_from_file_location(f"accelerator_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where `dataclass` looks
    spec.loader.exec_module(module)
    return module


part, run = load("part"), load("run")


@pytest.mark.slow
def test_the_small_script_checks_the_laws_and_measures(tmp_path):
    pytest.importorskip("optax")
    out = tmp_path / "rows.json"
    command = [
        sys.executable,
        str(HERE / "run.py"),
        "--small",
        "--budget",
        "500",
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("All laws hold.\n")
    found = {part["name"]: part["rows"] for part in json.loads(out.read_text())}
    assert list(found) == run.SMALL
    assert sum(row.get("holds", False) for row in found["laws"]) >= 18
    assert "1.00 x the limit" in [row.get("limit") for row in found["E"]]
    assert len(found["blocks"]) == 7


def task(folder):
    return part.Task("A", folder / "rows", time.monotonic() + 60, True)


@pytest.mark.parametrize(
    ("law", "holds"),
    [(lambda: True, True), (lambda: False, False), (lambda: 1 / 0, False)],
)
def test_a_law_that_is_broken_or_fails_makes_the_part_fail(tmp_path, law, holds):
    task(tmp_path).check("bits", law)
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert run.Part("laws", rows, "", 1.0).holds == holds


def test_a_law_that_cannot_be_checked_here_says_why(tmp_path):
    task(tmp_path).check("bits", lambda: "not in this version")
    rows = [json.loads((tmp_path / "rows").read_text())]
    assert rows == [{"what": "bits", "value": "not in this version"}]
    assert run.Part("laws", rows, "", 1.0).holds


def test_no_time_is_a_failure_of_the_laws_alone():
    late = "ended after 10 s"
    rows = [{"what": "bits", "value": "yes", "holds": True}]
    assert not run.Part("laws", rows, late, 10.0).holds
    assert not run.Part("laws", [], "", 10.0).holds
    assert run.Part("A", rows, late, 10.0).holds
    assert not run.Part("A", rows, "failed with code 1", 10.0).holds


def has_ended(pid, within=10):
    """Whether a process is gone in time, or waits for somebody to ask how it ended (Linux)."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        os.sched_yield()
    return False


def test_a_part_that_hangs_or_fails_keeps_the_rows_it_has(tmp_path, monkeypatch):
    """A part of two rows, of which the second never comes; what it has started ends with it."""
    pid = tmp_path / "pid"
    (tmp_path / "part.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid))\n"
        "open(sys.argv[2], 'a').write('{\"what\": \"first\"}\\n')\n"
        "time.sleep(600) if sys.argv[1] == 'hangs' else sys.exit(3)\n"
    )
    monkeypatch.setattr(run, "HERE", tmp_path)
    hangs = run.run_part("hangs", 5, True, {})
    assert (hangs.rows, hangs.why) == ([{"what": "first"}], "ended after 5 s")
    assert has_ended(int(pid.read_text()))
    fails = run.run_part("fails", 60, True, {})
    assert (fails.rows, fails.why) == ([{"what": "first"}], "failed with code 3")


def test_peers_are_compared_with_the_part_of_their_workload():
    rows = [
        {"what": "scan", "contender": "limit", "seconds": [1.0, 2.0, 3.0]},
        {"what": "loop", "contender": "hand_written", "seconds": [4.0]},
    ]
    peer = run.Part("torch-A", [{"what": "PyTorch", "seconds": [6.0]}], "", 1.0)
    run.compare(peer, [run.Part("D", [], "", 1.0), run.Part("A", rows, "", 1.0)])
    assert (peer.rows[0]["limit"], peer.rows[0]["by_hand"]) == (
        "3.00 x the limit",
        "1.50 x by hand",
    )


@pytest.mark.parametrize(("name", "flags"), [("laws", f"--a=b {run.FLAG}"), ("A", "--a=b")])
def test_only_the_laws_run_with_the_flag_for_equal_bits(tmp_path, monkeypatch, name, flags):
    (tmp_path / "part.py").write_text(
        "import json, os, sys\n"
        "open(sys.argv[2], 'a').write(json.dumps({'what': os.environ['XLA_FLAGS']}) + '\\n')\n"
    )
    monkeypatch.setattr(run, "HERE", tmp_path)
    found = run.run_part(name, 60, True, {"XLA_FLAGS": "--a=b"})
    assert found.rows == [{"what": flags}]
