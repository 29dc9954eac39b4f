"""`python run.py --kills 200`: kills training runs at random moments, and compares their ends.

Each run of `train.py` is trained once without a break. Then it is begun anew, killed by SIGKILL a
few times at random moments, during saves too, resumed each time in a fresh process, and must end
with the SHA-256 of the first: of the Experiment, the history and early stopping. After each kill,
every checkpoint must be whole, and equal to the one of the same step of the run without a break.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from train import RUNS

from solstice import checkpoint

HERE = Path(__file__).parent
KILLS_A_RUN = 6


def begin(name, folder, keep):
    """A process that trains, from the moment at which it says so, or ends."""
    command = [sys.executable, HERE / "train.py", name, folder, str(keep)]
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    while process.stdout.readline() not in ("begun\n", ""):
        pass
    return process


def train_whole(name, folder):
    """The run without a break: its end, its seconds, and all its checkpoints."""
    folder.mkdir()
    process = begin(name, folder, keep=10**6)
    start = time.monotonic()
    process.wait()
    if process.returncode != 0:
        raise SystemExit(f"{name} fails:\n{(folder / 'log.txt').read_text()[-3000:]}")
    return (folder / "result.json").read_text(), time.monotonic() - start


def is_closed(path):
    """Whether a checkpoint was saved after the end of an epoch."""
    return checkpoint.manifest(path)["note"]["run"]["is_closed"]


def compare_checkpoints(name, whole, folder):
    """Every checkpoint that is there must be whole, and the right one. How many were compared."""
    compared = 0
    for path in (folder / "runs").glob("step-*"):
        expected = whole / "runs" / path.name
        if not expected.exists():  # saved by the clock
            checkpoint.manifest(path)
            continue
        # Members change after the last step of an epoch, at which the clock may save too.
        if name.endswith("members") and is_closed(path) != is_closed(expected):
            continue
        differences = checkpoint.diff(expected, path)
        if differences:
            raise SystemExit(f"{name}: {path.name} is wrong: {differences}")
        compared += 1
    return compared


def torture(name, whole, result, seconds, folder, rng, kills):
    """One run, killed so often; what happened, counted."""
    counts = Counter()
    folder.mkdir()
    for _ in range(kills):
        process = begin(name, folder, keep=2)
        time.sleep(rng.uniform(0, seconds / 3))  # any moment will do, on a busy machine too
        process.kill()
        process.wait()
        if process.returncode == 0:
            counts["ended before"] += 1
            break
        counts["kills"] += 1
        half = list((folder / "runs").glob(".*")) if (folder / "runs").exists() else []
        counts["kills in a save"] += bool(half)
        counts["checkpoints compared"] += compare_checkpoints(name, whole, folder)
    process = begin(name, folder, keep=2)
    process.wait()
    ended = process.returncode == 0 and (folder / "result.json").exists()
    same = ended and (folder / "result.json").read_text() == result
    if not same:
        log = (folder / "log.txt").read_text()[-3000:]
        raise SystemExit(f"{name}: killed and resumed, it ended otherwise\n{log}")
    counts["runs with the same end"] += 1
    shutil.rmtree(folder)
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many processes to kill")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments")
    parser.add_argument("--only", help="the runs whose names contain this")
    options = parser.parse_args()
    names = [name for name in RUNS if options.only is None or options.only in name]
    rng, totals, lock = random.Random(options.seed), Counter(), Lock()
    print(f"seed {options.seed}; runs: {', '.join(names)}", flush=True)
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(2) as pool:
        place = Path(place)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(place / "compiled")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        wholes = dict(zip(names, pool.map(lambda n: train_whole(n, place / n), names), strict=True))
        rounds = 0
        while totals["kills"] < options.kills:
            rounds += 1

            def one(name, number=rounds):
                moments = random.Random(rng.random())
                folder = place / f"{name}-{number}"
                left = options.kills - totals["kills"]
                if left <= 0:
                    return
                counts = torture(
                    name, place / name, *wholes[name], folder, moments, min(KILLS_A_RUN, left)
                )
                with lock:
                    totals.update(counts)
                    print(f"{name}: {dict(counts)}; in all {dict(totals)}", flush=True)

            list(pool.map(one, names))
    print(f"all ended as without a break: {dict(totals)}")


if __name__ == "__main__":
    main()
