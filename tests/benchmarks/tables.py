"""The tables of the page: `table = tables.get("E")`, its contenders, and how they are compared."""

from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent

LIMIT = "limit"
BY_HAND = "hand_written"
SOLSTICE = {
    "solstice_default": "Experiment by hand, default callbacks",
    "solstice_none": "Experiment by hand, no callbacks",
    "ready_default": "ready-made Experiment, default callbacks",
    "ready_none": "ready-made Experiment, no callbacks",
}
"""A hand-written and a ready-made Experiment in the Trainer."""

KERAS = {"keras_1": "Keras 3", "keras_32": "Keras 3, `steps_per_execution=32`"}

TRAINING = {
    LIMIT: "the limit: one scan of the epoch",
    "hand_fused": "hand-fused blocks of 32",
    BY_HAND: "hand-written loop, donated",
    "usual_loop": "usual loop, `float(loss)`",
    **KERAS,
    "linen": "Flax Linen",
    "nnx": "Flax NNX",
    "torch_1": "PyTorch, one thread",
    "torch_2": "PyTorch, two threads",
    "lightning": "Lightning",
    **SOLSTICE,
    "solstice_per_step": "Experiment by hand, a per-step callback",
    "solstice_within": "Experiment by hand, no callbacks, within one fit",
    "traced": "Experiment by hand, `Trace(every=1)`, within one fit",
    "traced_10": "Experiment by hand, `Trace(every=10)`, within one fit",
}
TRACED = ["solstice_within", "traced", "traced_10"]
EPOCHS = {
    LIMIT: "the limit: a scan of the epoch, a scan of the validation",
    BY_HAND: TRAINING[BY_HAND],
    "keras_1": "Keras 3",
    "keras_47": "Keras 3, `steps_per_execution=47`",
    "lightning": "Lightning",
    **SOLSTICE,
    "resident": "ready-made Experiment, no callbacks, data on the device",
    "resident_default": "ready-made Experiment, default callbacks, data on the device",
}
STATE = {
    LIMIT: TRAINING[LIMIT],
    BY_HAND: TRAINING[BY_HAND],
    "donated": "Experiment by hand, `fit(..., donate=True)`",
    "solstice_none": "Experiment by hand, `fit`, which copies the state of the caller first",
    "per_call_1": "Experiment by hand, `steps_per_call=1`",
    "per_call_2": "Experiment by hand, `steps_per_call=2`",
    "per_call_8": "Experiment by hand, `steps_per_call=8`",
    "ready_none": SOLSTICE["ready_none"],
}
EVALUATION = {
    LIMIT: "the limit: one scan of the evaluation",
    BY_HAND: "hand-written loop",
    **KERAS,
    **SOLSTICE,
}
PREDICTION = {
    LIMIT: "the limit: one scan, then one copy to the host",
    BY_HAND: "hand-written loop, each output read",
    **KERAS,
    "solstice_none": "Experiment by hand, `predict`",
    "ready_none": "ready-made Experiment, `predict`",
}
READING = {
    "read": "reading alone",
    "train": "training alone",
    "fit": "`fit`",
    "fit_prefetch": "`fit`, `prefetch=4`",
}
POPULATION = {
    "fits": "32 fits, no callbacks",
    "population": "one `Population` of 32, no callbacks",
    "fits_default": "32 fits, default callbacks",
    "population_default": "one `Population` of 32, default callbacks",
}
LEAVES = {
    LIMIT: TRAINING[LIMIT],
    "hand_fused": TRAINING["hand_fused"],
    "hand_fused_ready": "hand-fused blocks, stacked beforehand",
    BY_HAND: TRAINING[BY_HAND],
    "filter_jit": "`eqx.filter_jit`",
    "nnx_jit": "`nnx.jit`",
    "solstice_none": "Solstice, no callbacks",
    "solstice_within": "Solstice, no callbacks, within one fit",
    "solstice_ready": "Solstice's engine, blocks filled beforehand",
}
START = {name: TRAINING[name] for name in (BY_HAND, "keras_1", "solstice_none", "ready_none")}
"""Whose first steps are timed with a compilation cache, in two processes one after the other."""


@dataclass(frozen=True)
class Table:
    """One table of the page.

    Attributes:
        workloads: those of `workloads.get` that it shows, a table of its own each but for leaves.
        contenders: titles by name.
        close: contenders between which a few hundredths count: more processes measure them.
        folder: the folder of contenders/ whose files go before those of contenders/ itself.
    """

    workloads: list[str]
    contenders: dict[str, str]
    close: list[str] = field(default_factory=list)
    folder: str = ""

    @property
    def always(self) -> list[str]:
        """Contenders without which there are no ratios."""
        bases = (LIMIT, BY_HAND, "read", "train", "fits", "fits_default")
        return [name for name in bases if name in self.contenders]

    def module(self, contender: str) -> str:
        """`table.module("limit")`: "epochs.limit", or "limit" where the folder has no own."""
        own = self.folder and (HERE / "contenders" / self.folder / f"{contender}.py").exists()
        return f"{self.folder}.{contender}" if own else contender


SIMPLE = ["A", "B32", "B128", "D"]
TABLES = {
    **{name: Table([name], TRAINING, [LIMIT, BY_HAND, *SOLSTICE, *TRACED]) for name in SIMPLE},
    "C": Table(["C"], TRAINING, [BY_HAND, *SOLSTICE]),  # its limit is none, and slow
    "E": Table(
        ["E"], EPOCHS, [LIMIT, BY_HAND, *SOLSTICE, "resident", "resident_default"], "epochs"
    ),
    "F": Table(["F-layers", "F-embedding"], STATE, folder="state"),
    "evaluation": Table(["evaluation"], EVALUATION, [LIMIT, *SOLSTICE], "evaluation"),
    "prediction": Table(
        ["prediction"], PREDICTION, [LIMIT, "solstice_none", "ready_none"], "prediction"
    ),
    "reading": Table(
        [f"reading-{name}" for name in ("python", "grain", "tfdata", "torch")],
        READING,
        folder="reading",
    ),
    "population": Table(
        ["population-E", "population-A"], POPULATION, [*POPULATION], folder="population"
    ),
    "leaves": Table(
        [f"leaves-{count}" for count in (10, 100, 1000)],
        LEAVES,
        [LIMIT, BY_HAND, "solstice_ready"],
    ),
}
ORDER = ["A", "B32", "B128", "C", "D", "E", "F"]
ORDER += ["evaluation", "prediction", "reading", "population", "leaves"]
START_WORKLOADS = ["A", "D"]


def get(workload: str) -> Table:
    """`get("F-layers")`: the table of a workload."""
    return next(table for table in TABLES.values() if workload in table.workloads)
