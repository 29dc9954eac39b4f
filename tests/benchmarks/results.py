"""What the contenders did: `Results`, one JSON file for each workload, from which the page is made.

A run of the benchmark measures some workloads, and replaces their files. The page shows all files
of its folder; these must be of one machine with one set of libraries.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tables

LIBRARIES = [
    *["jax", "jaxlib", "numpy", "optax", "equinox", "flax", "keras", "grain", "tensorflow-cpu"],
    *["torch", "lightning"],
]
ACCELERATOR, MESH = "accelerator.json", "mesh.json"


@dataclass
class Result:
    """What one contender did in one workload.

    Attributes:
        title: the contender in words.
        why: why it did not run, or "".
        first_steps: seconds from nothing, after the imports, to the first trained step, of each
            process.
        again: the same of a second process, with the compilation cache of the first.
        seconds: of each epoch, by process and round.
        peaks: bytes of memory above those after the imports and the data, of each process that
            can tell.
        loss: of the last epoch.
    """

    title: str
    why: str = ""
    first_steps: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    seconds: dict[tuple[int, int], float] = field(default_factory=dict)
    peaks: list[int] = field(default_factory=list)
    loss: float | None = None

    @property
    def first_step(self) -> float:
        return statistics.median(self.first_steps)

    @property
    def peak(self) -> float | None:
        return statistics.median(self.peaks) if self.peaks else None


@dataclass
class Results:
    """`Results("A", {"limit": Result("...")}, "nox -s bench")`: all contenders of one workload."""

    workload: str
    contenders: dict[str, Result]
    command: str
    machine: str = field(default_factory=lambda: machine())

    def save(self, folder: Path) -> None:
        """`results.save(Path("docs/benchmarks"))`: write "A.json"."""
        folder.mkdir(parents=True, exist_ok=True)
        values = asdict(self)
        for result in values["contenders"].values():
            # A JSON key is a string.
            result["seconds"] = [[*at, seconds] for at, seconds in result["seconds"].items()]
        text = json.dumps(values, indent=1)
        (folder / f"{self.workload}.json").write_text(text + "\n")

    @staticmethod
    def load(path: Path) -> "Results":
        """`Results.load(Path("docs/benchmarks/A.json"))`."""
        values = json.loads(path.read_text())
        for name, result in values["contenders"].items():
            seconds = {(process, at): s for process, at, s in result.pop("seconds")}
            values["contenders"][name] = Result(**result, seconds=seconds)
        return Results(**values)


@dataclass
class OnMesh:
    """What `nox -s bench_mesh` measured.

    Attributes:
        ms: the shortest milliseconds per step, as `ms["replicated"]["scan"]`.
        rounds: the number of rounds.
    """

    ms: dict[str, dict[str, float]]
    rounds: int
    command: str = "nox -s bench_mesh"
    machine: str = field(default_factory=lambda: machine())

    def save(self, folder: Path) -> None:
        """`on_mesh.save(Path("docs/benchmarks"))`: write "mesh.json"."""
        (folder / MESH).write_text(json.dumps(asdict(self), indent=1) + "\n")


def load_mesh(folder: Path) -> OnMesh | None:
    """`load_mesh(Path("docs/benchmarks"))`: the results of `nox -s bench_mesh`, or None."""
    path = folder / MESH
    return OnMesh(**json.loads(path.read_text())) if path.exists() else None


def load_all(folder: Path) -> dict[str, Results]:
    """`load_all(Path("docs/benchmarks"))["A"]`: all that are there, in the order of the page.

    Raises:
        ValueError: there are none, or they are of several machines or versions of a library.
    """
    order = [w for name in tables.ORDER for w in tables.TABLES[name].workloads]
    order += [f"start-{name}" for name in tables.START_WORKLOADS]
    paths = [path for path in folder.glob("*.json") if path.name not in (ACCELERATOR, MESH)]
    found = {path.stem: Results.load(path) for path in paths}
    if not found:
        raise ValueError(f"{folder} has no results yet: measure some before you ask for the page")
    machines = {results.machine for results in found.values()}
    if len(machines) > 1:
        lines = [f"  {name}: {results.machine!r}" for name, results in sorted(found.items())]
        raise ValueError(
            f"the results in {folder} are not of one machine with one set of libraries; measure "
            f"all of them again, or delete those that you do not need:\n" + "\n".join(lines)
        )
    return {name: found[name] for name in order if name in found}


def load_accelerator(folder: Path) -> list[dict[str, Any]]:
    """What `nox -s accelerator -- --out docs/benchmarks/accelerator.json` wrote; or nothing."""
    path = folder / ACCELERATOR
    return json.loads(path.read_text()) if path.exists() else []


def machine() -> str:
    """The machine and the libraries, in a sentence each."""
    versions = []
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    threads = "" if getattr(sys, "_is_gil_enabled", lambda: True)() else " without the GIL"
    return (
        f"{os.cpu_count()} cores ({platform.machine()}, {platform.system()}), "
        f"Python {platform.python_version()}{threads}.\n{', '.join(versions)}."
    )


def ratios(result: Result, to: list[Result]) -> list[float]:
    """Quartiles, the median in the middle, of the ratios within each round that all were in.

    With several in `to`, the ratio is to the slowest of them.
    """
    rounds = set(result.seconds).intersection(*(other.seconds for other in to))
    within = [result.seconds[at] / max(other.seconds[at] for other in to) for at in rounds]
    return [float(q) for q in np.percentile(within, [25, 50, 75])]
