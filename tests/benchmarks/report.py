"""The page: `report.page(found)` is Markdown, of which `chart.py` makes a picture."""

import statistics
from collections.abc import Iterable
from typing import Any

import tables
import workloads
from results import OnMesh, Result, Results, ratios

HEAD = """\
# Benchmarks

{headline}

![Time relative to one compiled scan, by workload and library](benchmarks.png)

{machine}
{accelerator}

All numbers come from these commands, on one machine with nothing else running:

```bash
{commands}
```

For the method and the contenders, see `tests/benchmarks/README.md`. In each round, every contender
trains the same batches once. A ratio compares two contenders within a round; the tables show its
median over all rounds, and its quartiles. Contenders between which a few hundredths count have
more rounds.

"The limit" is one `lax.scan` over data that is already on the device. On the CPU, XLA runs a
convolution slower inside a loop. In C the scan is therefore not a lower limit: compare with the
hand-written loop.

"By hand" is an Experiment with a `train_step` of its own. "Ready-made" is a
`ClassificationExperiment`, in D a `LanguageModelExperiment`: it also checks batches, and computes
all its metrics. Default callbacks are a progress bar, logging and history.

The first-step time starts in a new process, after the imports, and ends with one trained step. It
includes compilation. Peak memory excludes the memory in use after the imports and the data. Both
are medians over the processes.
"""

NOT_ACCELERATED = "No accelerator was at hand: `nox -s accelerator` makes the table of one."
ACCELERATED = "The last section is of `nox -s accelerator`, on another machine."

TITLES = {
    "F": "F: much state, little arithmetic",
    "evaluation": "Evaluation alone",
    "prediction": "`predict` alone",
    "reading": "Data sets that take time to read",
    "population": "32 members: one program, or one fit after the other",
    "leaves": "Leaf scaling",
    "start": "The first step, with a compilation cache",
    "mesh": "On a mesh of 8 devices",
}
TEXTS = {
    "F": "Parameters and Adam's moments take 300 MB and 384 MB.",
    "evaluation": "The network of A, without training.",
    "prediction": "The network of A: the probabilities of all examples, as NumPy arrays.",
    "reading": "The network of A. Each example costs some Python work to read, so a batch takes "
    "longer to read than to train. The best that is possible is the longer of the two, which is 1.",
    "population": "A ready-made Experiment, 32 times: one `fit` after the other in one process, of "
    "one compiled program, or one `fit` of a `Population`. Times are those of all 32.",
    "leaves": "Microseconds per step, median over epochs. The step adds 1 to each leaf, an array "
    "of 8 numbers.",
    "start": "Seconds from the imports to the end of the first step, in a new process, and in a "
    "second one with JAX's persistent compilation cache (`JAX_COMPILATION_CACHE_DIR`).",
    "mesh": "An MLP 64-128-10 with Adam, batches of 256, on eight devices of the CPU. Milliseconds "
    "per step, the shortest of {rounds} interleaved rounds. The steps and the scan are written by "
    "hand; the Trainer has blocks of 32, and its time is that of a `fit` of one epoch. The state "
    'is whole on each device, or split as by "fsdp".\n\n{machine}',
}


def page(
    found: dict[str, Results], accelerated: list[dict[str, Any]], mesh: OnMesh | None = None
) -> str:
    """`report.page(load_all(folder), load_accelerator(folder))`: the results, as Markdown."""
    commands = dict.fromkeys(results.command for results in found.values())
    commands |= {mesh.command: None} if mesh else {}
    machine = next((results.machine for results in found.values()), "")
    head = HEAD.format(
        headline=headline(found),
        machine=machine,
        accelerator=ACCELERATED if accelerated else NOT_ACCELERATED,
        commands="\n".join(commands) or "nox -s bench",
    )
    parts = [head]
    for name in tables.ORDER:
        here = [found[w] for w in tables.TABLES[name].workloads if w in found]
        if here:
            parts += [f"## {TITLES.get(name) or _title(name)}\n", _section(name, here)]
    started = [results for name, results in found.items() if name.startswith("start-")]
    if started:
        parts += [f"## {TITLES['start']}\n", f"{TEXTS['start']}\n", _start_table(started)]
    if mesh:
        text = TEXTS["mesh"].format(rounds=mesh.rounds, machine=mesh.machine)
        parts += [f"## {TITLES['mesh']}\n", f"{text}\n", mesh_table(mesh)]
    if accelerated:
        parts += ["## On an accelerator\n", _accelerator_table(accelerated)]
    return "\n".join(parts)


def headline(found: dict[str, Results]) -> str:
    """What matters most, in a sentence, and where it is otherwise in another."""
    long = _spans(found, ["A", "B32", "B128", "D"])
    ours, *others = HEADLINE
    if not long[ours]:
        return "These are partial results."
    rest = "".join(f", {HEADLINE[key]} {long[key]}" for key in others if long[key])
    scan = "as long as one compiled scan of the whole epoch"
    text = f"{HEADLINE[ours]} takes {long[ours]} {scan}{rest}."
    short = _spans(found, ["E"])
    if not short[ours]:
        return text
    rest = "".join(f", {HEADLINE[key]} {short[key]}" for key in others if short[key])
    return f"{text} With epochs of 47 very short steps and a validation, it is {short[ours]}{rest}."


def _spans(found: dict[str, Results], names: list[str]) -> dict[str, str]:
    """The ratios of the contenders of the headline over these workloads."""
    shown = [found[name].contenders for name in names if name in found]
    return {key: _span(medians(contenders, key) for contenders in shown) for key in HEADLINE}


HEADLINE = {
    "ready_default": "Training with a ready-made Experiment and its default callbacks",
    tables.BY_HAND: "a loop by hand",
    "keras_1": "Keras",
    "lightning": "Lightning",
}


def _span(values: Iterable[float | None]) -> str:
    there = sorted(value for value in values if value is not None)
    if not there:
        return ""
    low, high = f"{there[0]:.2f}", f"{there[-1]:.2f}"
    return f"{low} times" if low == high else f"{low} to {high} times"


def medians(contenders: dict[str, Result], key: str) -> float | None:
    """The median of a contender's ratios to the limit; None where it, or the limit, did not run."""
    result, limit = contenders.get(key), contenders.get(tables.LIMIT)
    if result is None or limit is None or not (result.seconds and limit.seconds):
        return None
    return ratios(result, [limit])[1]


def _title(name: str) -> str:
    return f"{name}: {workloads.get(name, 11).title}"


def _section(name: str, found: list[Results]) -> str:
    text = [f"{TEXTS[name]}\n"] if name in TEXTS else []
    if name == "leaves":
        return "\n".join([*text, _leaf_table(found)])
    if name == "reading":
        return "\n".join([*text, _reading_table(found)])
    if name == "population":
        return "\n".join([*text, *map(_population_table, found)])
    for results in found:
        workload = workloads.get(results.workload)
        if len(found) > 1 or name in TITLES:
            text.append(f"### {workload.title}\n")
        text.append(f"{_steps(workload)}; {_rounds(results)}.\n")
        rows = [_row(r, results, workload) for r in results.contenders.values()]
        text.append(_table(_columns(workload), rows))
        text.append(_cost_of_callbacks(results.contenders))
    return "\n".join(part for part in text if part)


def _steps(workload: workloads.Workload) -> str:
    epochs = f", {workload.epochs} epochs in one `fit`" if workload.epochs > 1 else ""
    validation = f", {len(workload.validation)} batches of validation after it"
    return (
        f"{len(workload.batches):,} steps per epoch{validation if workload.validation else ''}"
        f"{epochs}"
    )


def _rounds(results: Results) -> str:
    counts = sorted({len(r.seconds) for r in results.contenders.values() if r.seconds})
    return f"{' or '.join(map(str, counts))} rounds"


def _columns(workload: workloads.Workload) -> list[str]:
    return [
        "contender",
        "x the limit",
        "quartiles",
        "x hand-written",
        f"ms per {workload.unit}",
        "first step, s",
        "x hand-written",
        "peak memory, MB",
        "x hand-written",
    ]


def _row(result: Result, results: Results, workload: workloads.Workload) -> list[str]:
    if result.why or not result.seconds:
        return [result.title, result.why or "did not run"]
    by_hand = results.contenders[tables.BY_HAND]
    limit = _quartiles(result, results.contenders[tables.LIMIT])
    ms = 1000 * statistics.median(result.seconds.values()) / workload.units
    return [
        result.title,
        *limit,
        _quartiles(result, by_hand)[0],
        f"{ms:.3f}",
        f"{result.first_step:.2f}",
        _over(result.first_step, by_hand.first_step if by_hand.first_steps else None),
        f"{result.peak / 1e6:.0f}" if result.peak is not None else "",
        _over(result.peak, by_hand.peak),
    ]


def _quartiles(result: Result, *to: Result) -> tuple[str, str]:
    """The median ratio, and its quartiles; nothing where there are none."""
    if not all(other.seconds for other in to):
        return "", ""
    low, middle, high = ratios(result, [*to])
    return f"{middle:.2f}", f"{low:.2f} to {high:.2f}"


def _over(number: float | None, other: float | None) -> str:
    return f"{number / other:.2f}" if number is not None and other else ""


def _cost_of_callbacks(contenders: dict[str, Result]) -> str:
    """What the default callbacks and the ready-made Experiment cost."""
    base = contenders.get("solstice_none")
    within = contenders.get("solstice_within")
    said: list[str] = []
    for name, words in COSTS.items():
        result, other = contenders.get(name), within if name in TRACES else base
        if other is not None and result is not None and result.seconds and other.seconds:
            said.append("{} takes {} times ({})".format(words, *_quartiles(result, other)))
    if not said:
        return ""
    return f"Compared with an Experiment by hand with no callbacks, {', '.join(said)} as long.\n"


TRACES = ("traced", "traced_10")
"""Measured within one `fit`, and so compared with one that is."""

COSTS = {
    "solstice_default": "one with the default callbacks",
    "ready_none": "a ready-made one with none",
    "ready_default": "a ready-made one with the default callbacks",
    "traced": "one with `Trace(every=1)`",
    "traced_10": "one with `Trace(every=10)`",
}


def _leaf_table(found: list[Results]) -> str:
    titles = {key: result.title for key, result in found[0].contenders.items()}
    rows = [
        [title, *(_microseconds(results, key) for results in found)]
        for key, title in titles.items()
    ]
    names = [workloads.get(results.workload, 1).title for results in found]
    return _table(["contender", *names], rows)


def _microseconds(results: Results, key: str) -> str:
    result = results.contenders[key]
    return result.why or f"{_step_time(results, result):.1f}"


def _step_time(results: Results, result: Result) -> float:
    """Microseconds per step."""
    steps = len(workloads.get(results.workload).batches)
    return 1e6 * statistics.median(result.seconds.values()) / steps


def _reading_table(found: list[Results]) -> str:
    columns = ["data set", "reading, us", "training, us"]
    for name in ("fit", "fit_prefetch"):
        columns += [f"{tables.READING[name]}, us", "x the longer", "quartiles"]
    return _table(columns, [_reading_row(results) for results in found])


READERS = {
    "python": "a generator in Python",
    "grain": "grain",
    "tfdata": "`tf.data`",
    "torch": "torch `DataLoader`",
}


def _reading_row(results: Results) -> list[str]:
    title = READERS[results.workload.partition("-")[2]]
    contenders = results.contenders
    alone = [contenders["read"], contenders["train"]]
    if not all(result.seconds for result in alone):
        return [title, next(result.why for result in alone if not result.seconds)]
    row = [title, *(f"{_step_time(results, result):.0f}" for result in alone)]
    for name in ("fit", "fit_prefetch"):
        result = contenders.get(name)
        if result is not None and result.seconds:
            row += [f"{_step_time(results, result):.0f}", *_quartiles(result, *alone)]
    return row


def _population_table(results: Results) -> str:
    workload = workloads.get(results.workload)
    columns = ["contender", "x 32 fits", "quartiles", f"ms per {workload.unit}", "first step, s"]
    rows = [_population_row(name, results, workload) for name in results.contenders]
    return f"### {workload.title}\n\n{_steps(workload)}; {_rounds(results)}.\n\n" + _table(
        columns, rows
    )


def _population_row(name: str, results: Results, workload: workloads.Workload) -> list[str]:
    result = results.contenders[name]
    if result.why or not result.seconds:
        return [result.title, result.why or "did not run"]
    base = results.contenders[name.replace("population", "fits")]
    ms = 1000 * statistics.median(result.seconds.values()) / workload.units
    return [result.title, *_quartiles(result, base), f"{ms:.3f}", f"{result.first_step:.2f}"]


def _start_table(found: list[Results]) -> str:
    columns = ["contender"]
    for results in found:
        name = results.workload.partition("-")[2]
        columns += [f"{name}, first", f"{name}, second", "x the first"]
    titles = {key: result.title for results in found for key, result in results.contenders.items()}
    rows = [
        [title, *(cell for results in found for cell in _start_cells(results.contenders.get(key)))]
        for key, title in titles.items()
    ]
    return _table(columns, rows)


def _start_cells(result: Result | None) -> list[str]:
    if result is None or result.why:
        return [result.why if result else "", "", ""]
    again = statistics.median(result.again)
    return [f"{result.first_step:.2f}", f"{again:.2f}", f"{again / result.first_step:.2f}"]


def mesh_table(mesh: OnMesh) -> str:
    """The times of a Trainer on a mesh, beside sharded loops by hand."""
    columns = ["state", "a step a call, ms", "a scan of 32, ms", "Trainer, ms"]
    rows = [
        [name, *(f"{x:.2f}" for x in (*ms, ms[2] / ms[0], ms[2] / ms[1]))]
        for name, by in mesh.ms.items()
        for ms in [[by["step"], by["scan"], by["Trainer"]]]
    ]
    return _table([*columns, "x the steps", "x the scan"], rows)


def _accelerator_table(parts: list[dict[str, Any]]) -> str:
    rows = [
        [part["name"], row["what"], *(row.get(key, "") for key in ("value", "limit", "by_hand"))]
        for part in parts
        for row in part["rows"] or [{"what": part["why"]}]
    ]
    return _table(["part", "", "", "", ""], rows)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    rows = [row + [""] * (len(columns) - len(row)) for row in rows]
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in [columns, rule, *rows])
