"""The page: `report.page(...)` is Markdown, of which `chart.py` makes a picture."""

import contextlib
import importlib.metadata
import os
import platform
import statistics
from typing import Any

import numpy as np
import workloads

LIBRARIES = ["jax", "jaxlib", "numpy", "optax", "equinox", "flax", "keras", "torch", "lightning"]

HEAD = """\
# Benchmarks

All numbers on this page come from one run of

```bash
{command}
```

For the method and the contenders, see `tests/benchmarks/README.md`.

{machine}

In each round, every contender trains one epoch. A ratio compares two contenders within a round;
the tables show its median over {rounds} rounds, and its quartiles. A few hundredths matter between
the limit, the hand-written loop, and Solstice with its default callbacks and with none. These have
{more} further processes of {more_epochs} epochs each, hence {close} rounds.

"The limit" is one `lax.scan` over an epoch already on the device. On the CPU, XLA runs a
convolution slower inside a loop. In C the scan is therefore not a lower limit: compare with the
hand-written loop. The limit had no further processes in C.

The first-step time starts in a new process, after the imports, and ends with one trained step. It
includes compilation. Peak memory excludes the memory in use after the imports and the data. Both
are medians over the processes.

![Epoch time relative to the limit, by workload](benchmarks.png)
"""

COLUMNS = [
    "contender",
    "x the limit",
    "quartiles",
    "x hand-written",
    "ms a step",
    "first step, s",
    "x hand-written",
    "peak memory, MB",
    "x hand-written",
]


def page(training: Any, leaves: Any, command: str, counts: Any) -> str:
    """`report.page(training, leaves, "nox -s bench", counts)`: the results, as Markdown.

    Args:
        training: results by workload and contender.
        leaves: the same, of leaf scaling.
        command: what was typed.
        counts: how often it was measured.
    """
    rounds = counts.epochs * counts.processes
    parts = [
        HEAD.format(
            command=command,
            machine=machine(),
            rounds=rounds,
            close=rounds + counts.more * counts.more_epochs,
            more=counts.more,
            more_epochs=counts.more_epochs,
        )
    ]
    for name, results in training.items():
        workload = workloads.get(name)
        steps = len(workload.batches)
        parts.append(f"## {name}: {workload.title}\n\n{steps:,} steps per epoch.\n")
        parts.append(_table(COLUMNS, [_row(r, results, steps) for r in results.values()]))
        parts.append(_cost_of_callbacks(results))
    if leaves:
        parts.append(
            "## Leaf scaling\n\nMicroseconds per step, median over epochs. The step adds 1 to each "
            "leaf, an array of 8 numbers.\n"
        )
        parts.append(_leaf_table(leaves))
    return "\n".join(parts)


def machine() -> str:
    """The machine and the libraries, in a sentence each."""
    versions = []
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return (
        f"{os.cpu_count()} cores ({platform.machine()}, {platform.system()}), "
        f"Python {platform.python_version()}.\n{', '.join(versions)}."
    )


def ratios(result: Any, to: Any) -> list[float]:
    """Quartiles, the median in the middle, of the ratios within each round that both were in."""
    rounds = result.seconds.keys() & to.seconds.keys()
    within = [result.seconds[at] / to.seconds[at] for at in rounds]
    return [float(q) for q in np.percentile(within, [25, 50, 75])]


def _row(result: Any, results: Any, steps: int) -> list[str]:
    if result.why:
        return [result.title, result.why]
    low, middle, high = ratios(result, results["limit"])
    hand_written = results["hand_written"]
    ms = 1000 * statistics.median(result.seconds.values()) / steps
    memory = ["", ""]
    if result.peak is not None and hand_written.peak:
        memory = [f"{result.peak / 1e6:.0f}", f"{result.peak / hand_written.peak:.2f}"]
    return [
        result.title,
        f"{middle:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{ratios(result, hand_written)[1]:.2f}",
        f"{ms:.3f}",
        f"{result.first_step:.2f}",
        f"{result.first_step / hand_written.first_step:.2f}",
        *memory,
    ]


def _cost_of_callbacks(results: Any) -> str:
    """What Solstice with its default callbacks takes, over what it takes with none."""
    both = [results.get(f"solstice_{kind}") for kind in ("default", "none")]
    if any(result is None or result.why for result in both):
        return ""
    low, middle, high = ratios(*both)
    return (
        f"With its default callbacks, Solstice takes {middle:.2f} times ({low:.2f} to {high:.2f}) "
        "as long as with none.\n"
    )


def _leaf_table(leaves: Any) -> str:
    rows = [
        [contender, *(_microseconds(name, leaves[name][key]) for name in leaves)]
        for key, contender in _titles(leaves).items()
    ]
    return _table(["contender", *(workloads.get(name, 1).title for name in leaves)], rows)


def _microseconds(name: str, result: Any) -> str:
    return result.why or f"{_step_time(name, result):.1f}"


def _step_time(name: str, result: Any) -> float:
    return 1e6 * statistics.median(result.seconds.values()) / len(workloads.get(name).batches)


def _titles(leaves: Any) -> dict[str, str]:
    return {key: result.title for key, result in next(iter(leaves.values())).items()}


def _table(columns: list[str], rows: list[list[str]]) -> str:
    rows = [row + [""] * (len(columns) - len(row)) for row in rows]
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in [columns, rule, *rows])
