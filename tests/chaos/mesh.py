"""`python mesh.py --kills 60`: kills one of two processes that train together, and resumes both.

The processes train `mesh_train.py` on a mesh of four devices, once without a break. Then one of
them is killed by SIGKILL, at a random moment or at a named point of a save; the other one ends by
itself, or is killed too. Both are begun again, until the run ends with the SHA-256 of the first:
of the Experiment and the history. After each kill, every checkpoint must be whole, and equal to
the one of the same step of the run without a break. Some are resumed on other topologies too,
and must end with its history, within 1e-6.
"""

import argparse
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mesh_train import LAYOUTS, POINTS

from solstice import checkpoint

HERE = Path(__file__).parent
KILLS_A_RUN, KILLS_A_LEFT, KILLS_AN_ELSEWHERE = 10, 3, 5
"""After how many kills a run may end, a survivor is left to itself, another topology resumes."""
FIRST_ONLY = list(POINTS)[3:]
"""The points to which only the first process comes."""
LIMIT = 240.0
"""Seconds after which a run hangs."""
SURVIVAL = 30.0
"""Seconds after which a process must have ended whose peer is dead."""


def begin(layout, folder, keep=2, victim=None, at=()):
    """The processes of a run. The victim kills itself at a point."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for index in range(LAYOUTS[layout].processes):
        command = [HERE / "mesh_train.py", folder, layout, port, index, keep]
        command += at if index == victim else ()
        with (folder / f"log-{index}.txt").open("a") as log:
            given = {"stdout": subprocess.PIPE, "stderr": log, "text": True}
            started.append(subprocess.Popen([sys.executable, *map(str, command)], **given))
    return started


def fail(why, folder):
    """Ends with the logs of a run."""
    for log in sorted(folder.glob("log-*.txt")):
        print(f"--- {log.name}\n{log.read_text()[-4000:]}")
    raise SystemExit(f"{folder.name}: {why}")


def end(processes, folder, limit=LIMIT):
    """Waits for processes. Their exit codes, and the seconds until the last one has ended."""
    start = time.monotonic()
    try:
        for process in processes:
            process.communicate(timeout=max(0.1, start + limit - time.monotonic()))
    except subprocess.TimeoutExpired:
        fail(f"it hangs for more than {limit:.0f} s", folder)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [process.returncode for process in processes], time.monotonic() - start


def train(layout, folder, keep=2):
    """The result of a run that is not killed, and its seconds."""
    codes, seconds = end(begin(layout, folder, keep), folder)
    if any(codes):
        fail(f"exit codes {codes} on {layout!r}", folder)
    return json.loads((folder / "result.json").read_text()), seconds


def compare_checkpoints(whole, folder):
    """Every checkpoint must be whole, and the right one. How many there are."""
    there = list((folder / "runs").glob("step-*"))
    for path in there:
        differences = checkpoint.diff(whole / "runs" / path.name, path)
        if differences:
            fail(f"{path.name} is wrong: {differences}", folder)
    return len(there)


def newest(folder):
    """The step of the newest checkpoint; -1 without any."""
    return max((int(p.name[5:]) for p in (folder / "runs").glob("step-*")), default=-1)


def is_close(row, other):
    """Whether rows are equal within 1e-6 in losses, and exactly in counts and what counts give."""
    return row.keys() == other.keys() and all(
        abs(row[name] - value) <= 1e-6 * abs(value) if "loss" in name else row[name] == value
        for name, value in other.items()
    )


def resume_elsewhere(layout, folder, result):
    """Resumes a copy on another topology, which must end with the same history."""
    copy = folder.with_name(f"{folder.name}-elsewhere")
    copy.mkdir()
    if (folder / "runs").exists():
        shutil.copytree(folder / "runs", copy / "runs")
    there, _ = train(layout, copy)
    rows, others = there["rows"], result["rows"]
    if len(rows) != len(others):
        fail(f"{len(rows)} rows on {layout!r}, not {len(others)}", copy)
    for row, other in zip(rows, others, strict=True):
        if not is_close(row, other):
            fail(f"resumed on {layout!r}:\n{row}\nis not\n{other}", copy)
    shutil.rmtree(copy)


def kill(point, folder, rng, seconds, *, is_left):
    """Trains until one process is killed, counted; the other one is left or killed too."""
    victim = 0 if point in FIRST_ONLY else rng.randrange(2)
    at = () if point == "any moment" else (point, rng.randint(1, 6))
    processes = begin("rows", folder, victim=victim, at=at)
    if not at:
        processes[victim].stdout.readline()
        time.sleep(rng.uniform(0, seconds / 4))  # any moment will do, on a busy machine too
        processes[victim].kill()
    [code], _ = end([processes[victim]], folder)
    survivor = processes[1 - victim]
    if code != -9:
        codes, _ = end([survivor], folder)
        if code or codes[0]:
            fail(f"exit codes {code} and {codes[0]} without a kill", folder)
        return Counter({"ended before": 1})
    if is_left:
        [code], late = end([survivor], folder, SURVIVAL)
        print(f"  process {1 - victim} ended by itself after {late:.1f} s, exit code {code}")
    else:
        time.sleep(rng.uniform(0, 1))
        survivor.kill()
        survivor.communicate()
    half = list((folder / "runs").glob(".step-*"))
    return Counter(
        {
            "kills": 1,
            f"at {point}": 1,
            "kills in a save": bool(half),
            "survivors that ended by themselves": is_left,
        }
    )


def torture(whole, result, seconds, folder, rng, kills):
    """One run, killed so often; what happened, counted."""
    counts, last = Counter(), -1
    points = rng.sample([*["any moment"] * (KILLS_A_RUN - len(POINTS)), *POINTS], KILLS_A_RUN)
    folder.mkdir()
    while counts["kills"] < kills and not counts["ended before"]:
        is_left = counts["kills"] % KILLS_A_LEFT == 0
        counts += kill(points.pop(), folder, rng, seconds, is_left=is_left)
        counts["checkpoints compared"] += compare_checkpoints(whole, folder)
        last, before = newest(folder), last
        if last < before:
            fail(f"step-{before} is lost, and the newest is step-{last}", folder)
        if counts["kills"] % KILLS_AN_ELSEWHERE == 0:
            layout = rng.choice([name for name in LAYOUTS if name != "rows"])
            resume_elsewhere(layout, folder, result)
            counts[f"resumed on {layout}"] += 1
        print(f"  step {last}: {dict(counts)}", flush=True)
    again, _ = train("rows", folder)
    if again != result:
        fail("killed and resumed, it ended otherwise", folder)
    counts["runs with the same end"] += 1
    shutil.rmtree(folder)
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60, help="how many processes to kill")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments")
    options = parser.parse_args()
    rng, totals = random.Random(options.seed), Counter()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{place}/compiled"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
        whole = Path(place) / "whole"
        whole.mkdir()
        result, seconds = train("rows", whole, keep=10**6)
        print(f"without a break: {seconds:.0f} s", flush=True)
        while totals["kills"] < options.kills:
            folder = Path(place) / f"run-{totals['kills']}"
            left = min(KILLS_A_RUN, options.kills - totals["kills"])
            totals += torture(whole, result, seconds, folder, rng, left)
            print(f"in all {dict(totals)}", flush=True)
    print(f"all ended as without a break: {dict(totals)}")


if __name__ == "__main__":
    main()
