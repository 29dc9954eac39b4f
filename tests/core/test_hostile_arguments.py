"""Each argument of each public constructor and function, with hostile values.

A row is an argument and a value: the error names the argument, and nothing else comes out. What is
like a good value (NumPy's integers, arrays without axes) serves as it. `hostile.TARGETS` says what
each argument means, and `hostile.KINDS` what is hostile by that meaning.
"""

import re
from inspect import signature
from typing import Any

import jax
import numpy as np
import pytest
from hostile import BATCHES, GOOD, KINDS, NULL, TARGETS, Null, deleted

import solstice
import solstice.testing as kit
from solstice import (
    callbacks,
    checkpoint,
    compat,
    data,
    experiments,
    history,
    inspect,
    loggers,
    metrics,
    runs,
)
from solstice.checkpoint import CheckpointError

ROWS = [
    (target, argument, value)
    for target, about in TARGETS.items()
    for argument, kind in about.kinds.items()
    for value in KINDS[kind]
]

NAMED = (ValueError, TypeError, KeyError, ImportError, CheckpointError)
"""DataError is a ValueError, ExperimentError a TypeError, AdapterError an ImportError."""


def outcome(target, argument, value):
    about = TARGETS[target]
    given: dict[str, Any] = {**about.given, argument: KINDS[about.kinds[argument]][value]()}
    try:
        return about.make(**given)
    except Exception as error:
        return error


def is_ours(error):
    """Whether Solstice raised it, and not Python, NumPy or JAX on the way."""
    frame = error.__traceback__
    while frame.tb_next is not None:
        frame = frame.tb_next
    return frame.tb_frame.f_globals["__name__"].startswith("solstice.")


def is_named(error, name):
    return re.search(rf"\b({name})\b", str(error)) is not None


def test_there_are_enough_rows():
    assert len(ROWS) >= 438


@pytest.mark.parametrize("target", TARGETS)
def test_each_hostile_value_is_refused_by_the_name_of_its_argument(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = []
    for _, argument, value in [row for row in ROWS if row[0] == target]:
        found = outcome(target, argument, value)
        name = TARGETS[target].says.get(argument, argument)
        if not isinstance(found, NAMED) or not is_ours(found) or not is_named(found, name):
            wrong.append(f"{argument}={value}: {found!r:.200}")
    assert wrong == []


MODULES = (
    solstice,
    *(callbacks, checkpoint, compat, data, experiments, history, inspect, loggers, metrics, kit),
    runs,
)

NOT_CHECKED: dict[str, str] = {
    "Phase": "an enumeration, whose arguments are those of Python",
    **dict.fromkeys(
        [
            "Record",
            "Digests",
            "Replay",
            "RunDiff",
            "RunInfo",
            "Snapshot",
            "Start",
            "LearningRates",
            "Part",
            "StepPlan",
            "Summary",
        ],
        "Solstice makes it, and users read it",
    ),
    **dict.fromkeys(
        [
            "AdapterInfo",
            "Norms",
            "Spikes",
            "Forward",
            "Compilation",
            "Times",
            "Blame",
            "Example",
            "PerExample",
            "Comparison",
            "Difference",
        ],
        "Solstice makes it, and users read it",
    ),
    **dict.fromkeys(
        ["CompileBudgetError", "DataError", "ExperimentError", "AdapterError", "CheckpointError"],
        "an exception, of any text",
    ),
    **dict.fromkeys(
        ["PeerFailed", "PeerMismatch", "PeerMissing"], "an exception, which Solstice makes"
    ),
    "PerProcess": "Solstice makes it",
    "PerMember": "Mapped makes it",
    "Stop": "an exception, of any text",
    **dict.fromkeys(["Model", "Optimizer", "Objective"], "a protocol"),
    **dict.fromkeys(["OptState", "Params", "State"], "a type alias"),
    **dict.fromkeys(
        ["ModelConformance", "OptimizerConformance", "MetricsConformance"], "pytest makes it"
    ),
    "Run": "`verify_resume` hands its parts to a Trainer, which checks them",
    "Masked": "a pytree node, which JAX makes of anything; each Experiment checks the mask",
    "BatchIterator": "`iter(batches)` makes it",
    "Logger": "abstract: CSV has its arguments",
    "Options": "a TypedDict: each ready-made Experiment has its arguments",
    "Task": "abstract: SupervisedExperiment checks it",
    "ReadyMadeExperiment": "abstract, without arguments",
    "counted": "for authors of tasks: arrays of a batch that was checked",
    "diff": "any tree has a difference to any other",
    "call_arguments": "for authors of adapters: any inputs serve",
    "call_in_evaluation": "for authors of adapters: any call serves",
}

NO_ROW: dict[tuple[str, str], str] = {
    ("Trainer.fit", "val_ds"): "as train_ds; None is none",
    ("train", "val_ds"): "as train_ds; None is none",
    ("Trainer.fit", "at_step"): "test_branch has what is refused",
    ("Trainer.fit", "branch"): "test_branch has what is refused",
    ("compare_models", "batch_size"): "`test` checks it",
    ("replay", "experiment"): "`fit` checks it",
    ("replay", "train_ds"): "`fit` checks it",
    ("replay", "val_ds"): "`fit` checks it",
    ("replay", "batch_size"): "`fit` checks it",
    ("at", "train_ds"): "`fit` checks it",
    ("at", "val_ds"): "`fit` checks it",
    ("at", "batch_size"): "`fit` checks it",
    ("at", "mesh"): "`Trainer` checks it",
    ("at", "sharding"): "`Trainer` checks it",
    **{
        ("blame", name): "as in `at`"
        for name in ("train_ds", "val_ds", "batch_size", "mesh", "sharding")
    },
    ("Prune", "trial"): "Optuna gives it to the objective",
    ("weights_of", "batch"): "any tree is a batch; test_sample_weights has what is refused",
    **{
        (target, name): "test_population_life has what is refused"
        for target, names in {
            "Population": "monitor mode patience halving evolve",
            "Evolve": "every fraction factors only bounds seed",
        }.items()
        for name in names.split()
    },
    **{
        (target, name): "tests/core/mesh_on_eight.py has what is refused"
        for target in (
            *("Trainer", "train", "test", "compare_models", "summary", "plan"),
            "find_learning_rate",
        )
        for name in ("mesh", "sharding")
    },
    ("per_process", "data"): "`fit` checks it",
    ("compare", "path"): "as in read_history, once there is something to draw",
    ("plan", "experiment"): "anything that can be called may make one",
    ("plan", "batch"): "any tree is a batch",
    ("export", "batch"): "any tree is a batch",
    ("export_predict", "batch"): "any tree is a batch",
    **{
        (target, name): "`exported` makes it"
        for target, names in {
            "ExportedRun": "path manifest state programs",
            "ExportedMetrics": "arrays functions",
        }.items()
        for name in names.split()
    },
    ("summary", "batch"): "any tree is a batch",
    ("run_steps", "batches"): "any tree is a batch; tests/optax/test_run_steps.py has what is none",
    ("mixed_precision", "model"): "as in Learner, and needs a policy",
    ("lora", "params"): "any tree; test_compat_lora has what does not fit",
    ("lora", "state"): "any tree; test_compat_lora has what does not fit",
    **{
        ("Lora", name): "`lora` makes it"
        for name in ("model", "rank", "on", "scale", "params", "state")
    },
    ("norms_of", "tree"): "any tree: what is no array does not count",
    ("spikes_of", "tree"): "any tree: one without Spikes has none",
    ("adapt_argument", "name"): "the code that calls it has it in its source",
    ("adapt_argument", "kind"): "the code that calls it has it in its source",
    ("EquinoxModel", "axis_name"): "equinox checks it, in the layers that have one",
    ("checkpoint.check_writable", "who"): "a name for the message",
    ("checkpoint.begin", "tree"): "as in save",
    ("checkpoint.begin", "note"): "its second part writes the note, and refuses it as save does",
    ("elementwise", "check_values"): "a decorator: Python gives it the function below",
    ("Mapped", "ids"): "given together with size; test_metrics_mapped has what is refused",
    ("Mapped", "size"): "given together with ids; test_metrics_mapped has what is refused",
    ("Population", "make"): "a function or a list; test_population has what is refused",
    ("Population", "hyperparameters"): "test_population has what is refused",
    ("convert", "source"): "a path or any tree; test_layouts has what is refused",
    ("convert", "like"): "any tree; test_layouts has what is refused",
    ("checkpoint.save", "tree"): "any tree; test_checkpoint has what is refused",
    ("checkpoint.load", "like"): "any tree; test_checkpoint has what is refused",
}


def public_arguments():
    """Each argument of what is public, under the name of a target."""
    for module in MODULES:
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value) and name not in NOT_CHECKED:
                prefix = "checkpoint." if module is checkpoint else ""
                target = "Batches" if name == "batches" else f"{prefix}{name}"
                for parameter in signature_of(value).parameters.values():
                    if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                        yield target, parameter.name


def signature_of(value):
    try:
        return signature(value)
    except ValueError:  # of a class without arguments
        return signature(lambda: None)


def test_every_public_argument_has_rows_or_a_reason():
    there = {(target, name) for target, about in TARGETS.items() for name in about.kinds}
    missing = {*public_arguments()} - there - {*NO_ROW}
    assert missing == set()
    assert {*NO_ROW} & there == set()


RUNS = (
    "run_steps",
    "Trainer.fit",
    "Trainer.validate",
    "Trainer.predict",
    "train",
    "test",
    "replay",
    "at",
    "blame",
)
OTHERWISE = (
    *("export", "export_predict", "exported"),
    *(*RUNS, "compare", "read_history", "find_learning_rate", "plan", "verify_resume", "MLflow"),
    *("checkpoint.save", "checkpoint.load", "checkpoint.manifest", "checkpoint.sweep"),
    *("checkpoint.exists", "checkpoint.remove", "checkpoint.check_writable", "read", "convert"),
    "diff",
    "write_package",
)
"""What does more than to make something of its arguments."""

ALIKE = [
    (target, argument, good)
    for target, about in TARGETS.items()
    if target not in OTHERWISE and not target.startswith(("History.", "LanguageModelExperiment."))
    for argument, kind in about.kinds.items()
    if kind in GOOD
    for good in GOOD[kind][1]
]


def plain_parts(made):
    """What an object has of plain values, by name; metrics are what they compute."""
    if isinstance(made, solstice.Metrics):
        return made.compute()
    if isinstance(made, list | dict):
        return made
    kept = {**vars(made), **(vars(made.task) if hasattr(made, "task") else {})}.items()
    return {n: v for n, v in kept if type(v) in (bool, int, float, str, tuple, type(None))}


@pytest.mark.parametrize("target", sorted({target for target, _, _ in ALIKE}))
def test_what_is_like_a_good_value_serves_as_it(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    about = TARGETS[target]
    for _, argument, good in [row for row in ALIKE if row[0] == target]:
        value, alike = GOOD[about.kinds[argument]]
        try:
            one = about.make(**{**about.given, argument: value})
            other = about.make(**{**about.given, argument: alike[good](value)})
        except (ImportError, checkpoint.CheckpointError, FileNotFoundError):
            continue  # of a tool that is not installed, or a file that is not there
        assert same_parts(plain_parts(one), plain_parts(other)), (argument, good)


def same_parts(one, other):
    np.testing.assert_equal(one, other)
    leaves = (type(leaf) for part in (one, other) for leaf in jax.tree.leaves(part))
    return np.bool_ not in leaves and np.int64 not in leaves


def fit(callbacks, batches=BATCHES, exp=NULL):
    return solstice.Trainer(callbacks).fit(exp, batches)


class Watches(solstice.Callback):
    def __init__(self, **attributes):
        self.__dict__ |= attributes

    def on_step_end(self, record):
        self.step = record.step


ATTRIBUTES = [
    *[("every", value) for value in (2.5, 2.0, float("nan"), float("inf"), "3", True, 0, -1, [1])],
    *[("needs", value) for value in (5, None, "metrics", ["loss"], [5], [None])],
    *[("phase", value) for value in ("x", None, float("nan"), [1], 2)],
]


@pytest.mark.parametrize(("name", "value"), ATTRIBUTES)
def test_hostile_attributes_of_a_callback_are_refused(name, value):
    with pytest.raises((TypeError, ValueError), match=rf"Watches\.{name}\b") as told:
        solstice.Trainer([Watches(**{name: value})])
    assert is_ours(told.value)


@pytest.mark.parametrize("value", [np.int64(2), np.array(2)])
def test_a_cadence_may_be_an_integer_of_numpy(value):
    watches = Watches(every=value)
    fit([watches], BATCHES * 4)
    assert watches.step == 4


CLASSES = solstice.ClassificationExperiment(kit.Linear(3), kit.Sgd(), 3)
REGRESSION = solstice.RegressionExperiment(kit.Linear(3), kit.Sgd())
X8, Y8 = np.ones((8, 3), np.float32), np.zeros(8, int)
BAD_BATCHES: dict[str, tuple[Any, Any, str]] = {
    "targets of 5": (CLASSES, (X8, Y8[:5]), "same number of examples"),
    "numbers of 5": (REGRESSION, (X8, X8[:5]), "same number of examples"),
    "deleted": (NULL, deleted((4,)), "train_ds"),
    "deleted features": (CLASSES, (deleted((8, 3)), Y8), "train_ds"),
    "text for features": (CLASSES, (["a"] * 8, Y8), "a batch must have"),
    "negative weights": (CLASSES, data.Masked((X8, Y8), np.full(8, -0.5)), "weights"),
    "weights of 5": (CLASSES, (X8, Y8, np.ones(5)), "third part"),
    "weights of text": (CLASSES, (X8, Y8, ["a"] * 8), "third part"),
    "a mask of 5": (CLASSES, data.Masked((X8, Y8), np.ones(5, bool)), "mask"),
    "a mask of text": (CLASSES, data.Masked((X8, Y8), "all"), "mask"),
    "no mask": (CLASSES, data.Masked((X8, Y8), None), "mask"),
    "no labels": (CLASSES, X8, "pair"),
    "labels of floats": (CLASSES, (X8, np.zeros(8)), "labels must be integers"),
    "nothing": (CLASSES, (X8[:0], Y8[:0]), "one example or more"),
    "a dict": (CLASSES, {"x": X8, "y": Y8}, "pair"),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_hostile_batches_are_refused_by_what_is_wrong_with_them(name):
    exp, batch, message = BAD_BATCHES[name]
    with pytest.raises(solstice.DataError, match=message) as told:
        fit([], [batch], exp)
    assert is_ours(told.value)


class OwnError(Exception):
    pass


def raising(at):
    def batches():
        for index in range(4):
            if index == at:
                raise OwnError("of my own")
            yield BATCHES[0]

    return batches


class RaisesWhenOpened:
    def __iter__(self):
        raise OwnError("of my own")


class RaisesByIndex:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            raise OwnError("of my own")
        return BATCHES[0]


SETS = {
    "first": (raising(0), "batch 0 of an epoch"),
    "later": (raising(2), "batch 2 of an epoch"),
    "a generator": (raising(2)(), "batch 2 of an epoch"),
    "opened": (RaisesWhenOpened(), "epoch 0 was opened"),
    "by index": (RaisesByIndex(), "batch 2 of an epoch"),
}


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("name", ["first", "later", "opened", "by index"])
def test_the_error_of_a_data_set_is_its_own_and_says_so(name, prefetch):
    train_ds, where = SETS[name]
    with pytest.raises(OwnError, match="of my own") as told:
        solstice.Trainer(prefetch=prefetch).fit(NULL, train_ds)
    assert sum(f"train_ds raised this as {where}" in note for note in told.value.__notes__) == 1
    with pytest.raises(OwnError) as told:
        solstice.Trainer().fit(Null(NULL.weight), BATCHES, train_ds)
    assert any("val_ds raised this" in note for note in told.value.__notes__)
