"""`python tests/accelerator/run.py`: the laws and the speed of Solstice on the device of JAX.

It needs JAX, Equinox, Optax and the files of this repository, whose packages need not be
installed. PyTorch and Lightning are measured where they are installed. It needs no network.

Each part runs in a process of its own and within its share of the time, so one that fails or hangs
costs no other. The script prints one table, and writes the rows as JSON after each part. It exits
with 1 if a law does not hold or was not checked, or if a part failed.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sources

HERE = Path(__file__).parent

PARTS = {
    "device": 40,
    "laws": 100,
    "placement": 40,
    "laws-unset": 40,
    "E": 50,
    "A": 40,
    "D": 60,
    "memory": 60,
    "blocks": 60,
    "C": 50,
    "B32": 40,
    "B128": 40,
    "torch-A": 60,
    "torch-E": 60,
    "torch-D": 60,
    "torch-C": 60,
    "torch-B32": 45,
    "torch-B128": 45,
}
"""The parts by order of importance, and the seconds that each may take."""
SMALL = ["device", "laws", "placement", "E", "blocks"]
LAWS = ["laws", "placement"]
FLAG = "--xla_gpu_deterministic_ops=true"
"""Without it, XLA does not give the same bits twice on a GPU. "laws-unset" runs without it."""
LEAST = 10
"""Seconds without which no part is started."""
BUSY = 4
"""How much more a small part may take, beside other tests on a busy CPU."""


@dataclass
class Part:
    """What a part has found: its rows, and why there are no more, or ""."""

    name: str
    rows: list[dict[str, Any]]
    why: str
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether all went well: parts for which no time was left matter for laws only."""
        if self.name in LAWS and (self.why or not self.rows):
            return False
        return not self.why.startswith("failed") and all(r.get("holds", True) for r in self.rows)


def run_part(name: str, seconds: float, small: bool, environment: dict[str, str]) -> Part:
    """Runs a part in its process; its rows are those that it wrote before it ended or was ended."""
    began = time.monotonic()
    if name == "laws":
        environment = {**environment, "XLA_FLAGS": f"{environment.get('XLA_FLAGS', '')} {FLAG}"}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        command = [sys.executable, str(HERE / "part.py"), name, str(rows), str(seconds)]
        command += ["--small"] if small else []
        why = run_group(command, seconds, environment)
        lines = rows.read_text().splitlines() if rows.exists() else []
    found = [json.loads(line) for line in lines]
    return Part(name, found, why, time.monotonic() - began)


def run_group(command: list[str], seconds: float, environment: dict[str, str]) -> str:
    """Runs a process and those that it starts; why it did not end well, or ""."""
    process = subprocess.Popen(command, env=environment, stdout=sys.stderr, start_new_session=True)
    try:
        code = process.wait(seconds)
        return "" if code == 0 else f"failed with code {code}"
    except subprocess.TimeoutExpired:
        return f"ended after {seconds:.0f} s"
    finally:  # also after Ctrl-C: a process that it left would go on using the device
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def compare(part: Part, parts: list[Part]) -> None:
    """Adds ratios to the rows of "torch-A", over the scan and the loop of the part "A"."""
    _, _, name = part.name.partition("-")
    base = {
        row.get("contender"): row for other in parts if other.name == name for row in other.rows
    }
    for row in part.rows:
        for key, to, words in [
            ("limit", "limit", "x the limit"),
            ("by_hand", "hand_written", "x by hand"),
        ]:
            if "seconds" in row and to in base:
                ratio = statistics.median(row["seconds"]) / statistics.median(base[to]["seconds"])
                row[key] = f"{ratio:.2f} {words}"


def table(parts: list[Part]) -> str:
    """All rows, one line each."""
    lines: list[str] = []
    for part in parts:
        lines.append(f"\n{part.name}{f': {part.why}' if part.why else ''} ({part.seconds:.0f} s)")
        for row in part.rows:
            cells = [row[key] for key in ("value", "limit", "by_hand") if row.get(key)]
            lines.append(f"  {row['what']:62}{''.join(f'{cell:>18}' for cell in cells)}")
    return "\n".join(lines)


def tell(text: str) -> None:
    print(f"[{time.monotonic() - START:4.0f} s] {text}", file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--budget", type=float, default=440, metavar="SECONDS", help="in all; 440 by default"
    )
    parser.add_argument(
        "--parts", nargs="+", metavar="NAME", choices=[*PARTS],
        help=f"of {', '.join(PARTS)}; all by default",
    )  # fmt: skip
    parser.add_argument(
        "--small", action="store_true", help="few steps, to try the script on a CPU in a minute"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("accelerator.json"), metavar="FILE",
        help="where the rows go, as JSON; accelerator.json by default",
    )  # fmt: skip
    options = parser.parse_args()
    options.parts = options.parts or (SMALL if options.small else [*PARTS])
    return options


def main() -> int:
    options = parse()
    parts: list[Part] = []
    with tempfile.TemporaryDirectory() as folder:
        environment = sources.environment(Path(folder))
        for name in options.parts:
            left = options.budget - (time.monotonic() - START)
            if left < LEAST:
                parts.append(Part(name, [], "left out: no time is left", 0.0))
                continue
            share = min(left, PARTS[name] * (BUSY if options.small else 1))
            tell(f"{name} (at most {share:.0f} s)")
            part = run_part(name, share, options.small, environment)
            compare(part, parts)
            parts.append(part)
            options.out.write_text(json.dumps([vars(part) for part in parts], indent=1))
    print(table(parts))
    failed = [part.name for part in parts if not part.holds]
    laws = "All laws hold." if set(LAWS) <= set(options.parts) else "Not all laws were checked."
    print(f"\n{'FAILED: ' + ', '.join(failed) if failed else laws}")
    tell(f"wrote {options.out}")
    return int(bool(failed))


START = time.monotonic()

if __name__ == "__main__":
    sys.exit(main())
