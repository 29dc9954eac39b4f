"""Hostile values by the meaning of an argument, and the public arguments that have each meaning."""

import datetime
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from clu_like import Brightness

import solstice
from solstice import callbacks, checkpoint, compat, data, experiments, loggers, metrics, runs
from solstice import testing as kit
from solstice.new_adapter import write_package

NAN, INF = math.nan, math.inf


class Broken:
    """Its `repr` fails too."""

    def __repr__(self):
        raise RuntimeError("no repr")


def deleted(shape=(4,)):
    """An array that a compiled function was given to write over."""
    array = jnp.zeros(shape)
    array.delete()
    return array


NO_NUMBER: dict[str, Any] = {
    "text": lambda: "3",
    "bytes": lambda: b"3",
    "True": lambda: True,
    "np.True_": lambda: np.True_,
    "nan": lambda: NAN,
    "complex": lambda: 1j,
    "a list": lambda: [1],
    "an array": lambda: np.ones(2),
    "a deleted array": lambda: deleted(()),
    "a broken object": Broken,
    "a class": lambda: int,
}
NO_COUNT = {
    **NO_NUMBER,
    "2.5": lambda: 2.5,
    "2.0": lambda: 2.0,
    "inf": lambda: INF,
    "float32": lambda: np.float32(2),
    "-1": lambda: -1,
}
NONE: dict[str, Any] = {"None": lambda: None}
ZERO: dict[str, Any] = {"0": lambda: 0}
NO_TEXT = {"5": lambda: 5, "bytes": lambda: b"x", "empty": lambda: "", "a list": lambda: ["x"]}
NO_PATH = {
    "5": lambda: 5,
    "bytes": lambda: b"x",
    "empty": lambda: "",
    "a list": lambda: ["x"],
    "a URL": lambda: "az://bucket/x",
    "a zero byte": lambda: "a\0b",
}
NO_SWITCH: dict[str, Any] = {
    "no": lambda: "no",
    "0": lambda: 0,
    "1": lambda: 1,
    "array": lambda: np.ones(2),
}
NO_FUNCTION = {"5": lambda: 5, "text": lambda: "mse", "a list": lambda: [len]}
NO_ARRAY = {
    "text": lambda: "abc",
    "an object": object,
    "a ragged list": lambda: [[1.0], [1.0, 2.0]],
    "an array of text": lambda: np.array(["a", "b", "c", "d"]),
    "dates": lambda: np.array([datetime.datetime(2026, 1, 1)] * 4, "M8[s]"),
    "durations": lambda: np.ones(4, "m8[s]"),
    "a deleted array": deleted,
    "a set": lambda: {1, 2},
}
COMPLEX = {"complex": lambda: np.ones(4, complex)}
OTHER_LENGTH = {"7 of them": lambda: np.zeros(7, int)}
NO_ADAPTER = {
    "5": lambda: 5,
    "None": lambda: None,
    "text": lambda: "adam",
    "a class": lambda: int,
    "a function": lambda: lambda x: x,
    "an array": lambda: np.ones(3),
}

KINDS: dict[str, dict[str, Callable[[], Any]]] = {
    "count": NO_COUNT | NONE | ZERO,
    "count or None": NO_COUNT | ZERO,
    "replicates": NO_COUNT | NONE | ZERO | {"19": lambda: 19},
    "size": NO_COUNT | NONE,
    "size or None": NO_COUNT,
    "tries": {k: v for k, v in NO_COUNT.items() if "True" not in k} | NONE,
    "positive": NO_NUMBER | NONE | ZERO | {"inf": lambda: INF, "-1": lambda: -1.0},
    "above one": NO_NUMBER | NONE | ZERO | {"inf": lambda: INF, "1.0": lambda: 1.0},
    "positive or None": NO_NUMBER | ZERO | {"inf": lambda: INF},
    "not negative": NO_NUMBER | NONE | {"-1": lambda: -0.5, "inf": lambda: INF},
    "finite": NO_NUMBER | NONE | {"inf": lambda: INF},
    "share": NO_NUMBER | NONE | {"1.0": lambda: 1.0, "-0.1": lambda: -0.1, "-inf": lambda: -INF},
    "confidence": NO_NUMBER | ZERO | {"1.0": lambda: 1.0, "95": lambda: 95, "-0.1": lambda: -0.1},
    "probability": NO_NUMBER | NONE | {"1.5": lambda: 1.5, "-0.1": lambda: -0.1},
    "switch": NO_SWITCH | NONE,
    "switch or None": NO_SWITCH,
    "word": {"auto": lambda: "auto", "5": lambda: 5, "bytes": lambda: b"min", "list": list},
    "names": {
        "5": lambda: 5,
        "bytes": lambda: b"x",
        "numbers": lambda: [1],
        "None in": lambda: [None],
    },
    "text": NO_TEXT | NONE,
    "text or None": NO_TEXT,
    "monitor": NO_TEXT | {"no mode": lambda: "loss", "test": lambda: "test/loss"},
    "path": NO_PATH | NONE,
    "path or None": NO_PATH,
    "function": NO_FUNCTION | NONE,
    "function or None": NO_FUNCTION,
    "table": {"5": lambda: 5, "text": lambda: "x", "list": lambda: [1], "keys": lambda: {1: 2}},
    "numbers": NO_ARRAY | COMPLEX | NONE,
    "numbers or None": NO_ARRAY | COMPLEX,
    "anything kept": NO_ARRAY | NONE | {"3.0": lambda: 3.0},
    "labels": NO_ARRAY | COMPLEX | NONE | {"halves": lambda: np.full(4, 0.5)} | OTHER_LENGTH,
    "mask": NO_ARRAY | COMPLEX | OTHER_LENGTH | {"weights": lambda: np.full(4, 0.5, np.float32)},
    "weights": NO_ARRAY | COMPLEX | OTHER_LENGTH,
    "whole numbers": NO_ARRAY | COMPLEX | NONE | {"halves": lambda: np.full(4, 0.5)},
    "model": NO_ADAPTER,
    "optimizer": NO_ADAPTER,
    "seed": {
        "0.5": lambda: 0.5,
        "text": lambda: "a",
        "None": lambda: None,
        "True": lambda: True,
        "2^70": lambda: 2**70,
        "two keys": lambda: jax.random.split(jax.random.key(0)),
        "a list": lambda: [1, 2],
        "a deleted key": lambda: deleted(()),
    },
    "key": {
        "0": lambda: 0,
        "None": lambda: None,
        "text": lambda: "a",
        "two keys": lambda: jax.random.split(jax.random.key(0)),
    },
    "natural": {
        "0.5": lambda: 0.5,
        "text": lambda: "a",
        "None": lambda: None,
        "True": lambda: True,
        "-1": lambda: -1,
    },
    "inputs": {"5": lambda: 5, "text": lambda: "x", "deleted": deleted, "empty": tuple},
    "weights of classes": {
        "5": lambda: 5,
        "text": lambda: "balanced",
        "other length": lambda: [1.0] * 9,
        "nan": lambda: [NAN, 1.0],
        "negative": lambda: [-1.0, 1.0],
        "zeros": lambda: [0.0, 0.0],
        "a table": lambda: {0: 1.0},
    },
    "callbacks": {
        "None": lambda: None,
        "5": lambda: 5,
        "text": lambda: "x",
        "one alone": solstice.History,
        "a class": lambda: [solstice.History],
        "a number in": lambda: [5],
        "a table": lambda: {"a": solstice.History()},
    },
    "data set": {
        "None": lambda: None,
        "5": lambda: 5,
        "text": lambda: "x",
        "bytes": lambda: b"x",
        "nothing": list,
        "an array": lambda: np.ones(3, np.float32),
        "a function of two": lambda: lambda a, b: [],
        "a function of nothing to read": lambda: lambda: 5,
        "a deleted array": lambda: [deleted()],
    },
    "arrays": {
        "5": lambda: 5,
        "None": lambda: None,
        "text": lambda: "x",
        "two lengths": lambda: (np.ones(3), np.ones(4)),
        "nothing": tuple,
        "no axis": lambda: np.float32(3),
        "a deleted array": deleted,
    },
    "experiment": {
        "None": lambda: None,
        "5": lambda: 5,
        "a class": lambda: Null,
        "an array": lambda: np.ones(3),
        "deleted": lambda: Null(deleted(())),
    },
    "metrics": {"None": lambda: None, "5": lambda: 5, "table": lambda: {"a": 1}},
    "metric of metrax": {
        "None": lambda: None,
        "5": lambda: 5,
        "a class": lambda: Brightness,
        "of ours": lambda: metrics.Mean(1.0),
        "a broken object": Broken,
    },
    "task": {
        "None": lambda: None,
        "text": lambda: "ranking",
        "a class": lambda: NumberTask,
        "with a number": lambda: NumberTask(0.5),
        "with a function": lambda: NumberTask(jnp.tanh),
    },
    "patterns": {
        "5": lambda: 5,
        "None": lambda: None,
        "nothing": tuple,
        "numbers": lambda: [1],
        "bytes": lambda: b"x",
    },
    "steps": {"5": lambda: 5, "text": lambda: "x", "0": lambda: [0], "2.5": lambda: [2.5]},
    "file": {"5": lambda: 5, "text": lambda: "a.txt"},
    "runs": {"5": lambda: 5, "None": lambda: None, "numbers": lambda: [5], "text": lambda: "a.csv"},
    "module": {"5": lambda: 5, "None": lambda: None, "a table": dict, "a class": lambda: int},
    "schedule": {"text": lambda: "cosine", "nan": lambda: NAN, "list": lambda: [0.1]},
    "policy": {"5": lambda: 5, "None": lambda: None, "list": lambda: ["bfloat16"]},
    "adapter": {"5": lambda: 5, "None": lambda: None, "a class": lambda: int},
    "counts": {
        "None": lambda: None,
        "5": lambda: 5,
        "nothing": dict,
        "numbers as keys": lambda: {1: 2},
    },
}


class Null(solstice.Experiment):
    """Does nothing; cheap to compile."""

    weight: Any

    def train_step(self, batch):
        return self, {"loss": batch.mean()}

    def eval_step(self, batch):
        return self, {"loss": batch.mean()}

    def predict_step(self, batch):
        return batch


class NumberTask(experiments.Task):
    """Predicts a number; `rate` is not static, as it would have to be if it were a number."""

    rate: Any = None

    def outputs(self, outputs, x, targets):
        return outputs[:, 0]

    def losses(self, outputs, targets, mask):
        return jnp.square(outputs - targets)

    def metrics(self, outputs, targets, mask):
        return metrics.Mean(targets, mask)


@dataclass(frozen=True)
class Target:
    """A public constructor or function.

    Attributes:
        make: what is called.
        given: good arguments, which each row changes one of.
        kinds: by argument, what it means.
        says: by argument, how its error calls it, where that is not the name.
    """

    make: Callable[..., Any]
    given: dict[str, Any]
    kinds: dict[str, str]
    says: dict[str, str] = field(default_factory=dict)


LINEAR, SGD, BATCHES = kit.Linear(3), kit.Sgd(), [np.ones((2, 3), np.float32)]
X, Y = np.ones(4, np.float32), np.array([0, 1, 0, 1])
SCORES = np.ones((4, 3), np.float32)
NULL = Null(jnp.zeros(()))
EVERY = {"every": "count or None", "only": "names"}
OPTIONS = {"loss": "function or None", "metrics": "function or None", "micro_batches": "count"}
MODEL = {
    "model": "model",
    "optimizer": "optimizer",
    "seed": "seed",
    "sample_input": "inputs",
}
PAIR = {"encoder": "model", "decoder": "model"}
BINARY = {"threshold": "probability", "class_weights": "weights of classes"}
SMOOTH = {"label_smoothing": "share"}
RUN = {
    "num_epochs": "count or None",
    "max_steps": "count or None",
    "batch_size": "count or None",
}
TRAINER = {
    "callbacks": "callbacks",
    "limit_train_batches": "count or None",
    "limit_val_batches": "count or None",
    "val_every_n_steps": "count or None",
    "prefetch": "size",
    "steps_per_call": "count or None",
    "fast_dev_run": "tries",
    "overfit_batches": "count or None",
    "sanity_val_batches": "count or None",
    "val_confidence": "confidence",
    "hyperparameters": "hyperparameters",
}
BARS = {"confidence": "confidence", "replicates": "replicates"}


def trainer_fit(**given):
    return solstice.Trainer().fit(**given)


def language(**given):
    exp = solstice.LanguageModelExperiment(LINEAR, SGD, 3)
    return exp.generate(**given)


WEIGHTS = {"Dense_0": {"kernel": np.ones((2, 3), np.float32)}}
TARGETS: dict[str, Target] = {
    "Trainer": Target(solstice.Trainer, {}, TRAINER),
    "Trainer.fit": Target(
        trainer_fit,
        {"experiment": NULL, "train_ds": BATCHES},
        {
            "experiment": "experiment",
            "train_ds": "data set",
            **RUN,
            "strict_resume": "switch",
            "resume": "path or None",
        },
    ),
    "Trainer.validate": Target(
        lambda **given: solstice.Trainer().validate(**given),
        {"experiment": NULL, "val_ds": BATCHES},
        {"experiment": "experiment", "val_ds": "data set", "batch_size": "count or None"},
    ),
    "Trainer.test": Target(
        lambda **given: solstice.Trainer().test(**given),
        {"experiment": NULL, "test_ds": BATCHES, "confidence": 0.9},
        {"experiment": "experiment", "test_ds": "data set", **BARS},
    ),
    "Trainer.predict": Target(
        lambda **given: list(solstice.Trainer().predict(**given)),
        {"experiment": NULL, "ds": BATCHES},
        {"experiment": "experiment", "ds": "data set", "batch_size": "count or None"},
    ),
    "train": Target(
        solstice.train,
        {"experiment": NULL, "train_ds": BATCHES, "callbacks": []},
        {
            "experiment": "experiment",
            "train_ds": "data set",
            **RUN,
            "resume": "path or None",
            "donate": "switch",
            "callbacks": "callbacks or None",
        },
    ),
    "test": Target(
        solstice.test,
        {"experiment": NULL, "test_ds": BATCHES, "callbacks": [], "confidence": 0.9},
        {
            **BARS,
            "experiment": "experiment",
            "test_ds": "data set",
            "batch_size": "count or None",
            "callbacks": "callbacks or None",
        },
    ),
    "compare_models": Target(
        solstice.compare_models,
        {"a": NULL, "b": NULL, "test_ds": BATCHES},
        {
            "a": "experiment",
            "b": "experiment",
            "test_ds": "data set",
            **BARS,
        },
    ),
    "Resampled": Target(
        solstice.Resampled,
        {"experiment": NULL},
        {"experiment": "experiment", "seed": "size", **BARS},
    ),
    "replay": Target(
        solstice.replay,
        {"directory": "none", "experiment": NULL, "train_ds": BATCHES},
        {"directory": "path"},
    ),
    "at": Target(
        solstice.at,
        {"directory": "none", "step": 3, "experiment": NULL, "train_ds": BATCHES},
        {"directory": "path", "step": "size", "experiment": "experiment", "save": "switch"},
    ),
    "blame": Target(
        solstice.blame,
        {"directory": "none", "step": 3, "experiment": NULL, "train_ds": BATCHES},
        {
            "directory": "path",
            "step": "count",
            "experiment": "experiment",
            "loss": "function or None",
        },
    ),
    "replace": Target(lambda **given: solstice.replace(given["module"]), {}, {"module": "module"}),
    "History": Target(
        solstice.History,
        {},
        {"every": "count or None", "scalars_only": "switch", "max_size": "size or None"},
    ),
    "History.best": Target(
        lambda **given: solstice.History().best(**given),
        {"name": "val/loss"},
        {"name": "text"},
    ),
    "History.series": Target(
        lambda **given: solstice.History().series(**given),
        {"name": "val/loss"},
        {"name": "text", "span": "word"},
    ),
    "History.to_csv": Target(solstice.History().to_csv, {"path": "a"}, {"path": "path"}),
    "History.to_jsonl": Target(solstice.History().to_jsonl, {"path": "a"}, {"path": "path"}),
    "compare": Target(
        solstice.compare,
        {"runs": [solstice.History()]},
        {"runs": "runs", "smooth": "share", "only": "names"},
    ),
    "read_history": Target(solstice.read_history, {"path": "a"}, {"path": "path"}),
    "find_learning_rate": Target(
        solstice.find_learning_rate,
        {"experiment": NULL, "train_ds": BATCHES},
        {
            "experiment": "experiment",
            "train_ds": "data set",
            "batch_size": "count or None",
            "lowest": "positive",
            "highest": "positive",
            "steps": "count",
            "metric": "text",
            "smooth": "share",
        },
    ),
    "run_steps": Target(
        solstice.run_steps,
        {"experiment": NULL, "batches": X[None]},
        {"experiment": "experiment"},
    ),
    "export": Target(
        solstice.export,
        {"experiment": NULL, "batch": X, "path": "a"},
        {"experiment": "experiment", "path": "path", "platforms": "names"},
    ),
    "export_predict": Target(
        solstice.export_predict,
        {"experiment": NULL, "batch": X, "path": "a"},
        {"experiment": "experiment", "path": "path", "platforms": "names"},
    ),
    "exported": Target(solstice.exported, {"path": "a"}, {"path": "path"}),
    "plan": Target(
        solstice.plan,
        {"experiment": NULL, "batch": X},
        {"method": "word"},
    ),
    "summary": Target(
        solstice.summary,
        {"experiment": NULL},
        {"experiment": "experiment", "depth": "size or None"},
    ),
    "watch_compiles": Target(
        solstice.watch_compiles,
        {"step": len},
        {"step": "function", "max_compiles": "size or None", "report": "function or None"},
    ),
    "ClassificationExperiment": Target(
        solstice.ClassificationExperiment,
        {"model": LINEAR, "optimizer": SGD, "num_classes": 3},
        {
            **MODEL,
            **OPTIONS,
            **SMOOTH,
            "class_weights": "weights of classes",
            "num_classes": "count",
        },
    ),
    "BinaryClassificationExperiment": Target(
        solstice.BinaryClassificationExperiment,
        {"model": LINEAR, "optimizer": SGD},
        {**MODEL, **OPTIONS, **SMOOTH, **BINARY},
    ),
    "MultilabelClassificationExperiment": Target(
        solstice.MultilabelClassificationExperiment,
        {"model": LINEAR, "optimizer": SGD, "num_labels": 3},
        {**MODEL, **OPTIONS, **SMOOTH, **BINARY, "num_labels": "count"},
    ),
    "RegressionExperiment": Target(
        solstice.RegressionExperiment, {"model": LINEAR, "optimizer": SGD}, {**MODEL, **OPTIONS}
    ),
    "LanguageModelExperiment": Target(
        solstice.LanguageModelExperiment,
        {"model": LINEAR, "optimizer": SGD, "vocabulary_size": 3},
        {
            **MODEL,
            **OPTIONS,
            **SMOOTH,
            "vocabulary_size": "count",
            "pad_id": "size or None",
            "token_bytes": "numbers or None",
        },
    ),
    "LanguageModelExperiment.generate": Target(
        language,
        {"prompts": np.zeros((1, 2), int), "num_tokens": 1, "key": jax.random.key(0)},
        {
            "prompts": "whole numbers",
            "num_tokens": "size",
            "temperature": "not negative",
            "key": "key",
        },
    ),
    "AutoencoderExperiment": Target(
        solstice.AutoencoderExperiment,
        {"encoder": LINEAR, "decoder": LINEAR, "optimizer": SGD},
        {**PAIR, **OPTIONS, "optimizer": "optimizer", "seed": "seed", "sample_input": "inputs"},
    ),
    "VAEExperiment": Target(
        solstice.VAEExperiment,
        {"encoder": LINEAR, "decoder": LINEAR, "optimizer": SGD, "latent_size": 2},
        {
            **PAIR,
            "optimizer": "optimizer",
            "latent_size": "count",
            "beta": "not negative",
            "seed": "seed",
            "sample_input": "inputs",
            "loss": "function or None",
            "activation": "function or None",
            "micro_batches": "count",
        },
    ),
    "GANExperiment": Target(
        solstice.GANExperiment,
        {"generator": LINEAR, "discriminator": LINEAR, "optimizer": SGD, "latent_size": 2},
        {
            "generator": "model",
            "discriminator": "model",
            "optimizer": "optimizer",
            "discriminator_optimizer": "optimizer or None",
            "latent_size": "count",
            "loss": "function or None",
            "seed": "seed",
            "sample_input": "inputs",
            "micro_batches": "count",
        },
    ),
    "Learner": Target(
        experiments.Learner,
        {"model": LINEAR, "optimizer": SGD},
        {**MODEL, "free_axes": "count"},
    ),
    "SupervisedExperiment": Target(
        experiments.SupervisedExperiment,
        {"model": LINEAR, "optimizer": SGD, "task": NumberTask()},
        {**MODEL, **OPTIONS, "task": "task"},
    ),
    "Checkpoint": Target(
        callbacks.Checkpoint,
        {"directory": "a"},
        {
            "directory": "path",
            "every": "count or None",
            "minutes": "positive or None",
            "every_epochs": "count or None",
            "keep": "count",
            "monitor": "monitor",
            "mode": "word",
            "keep_best": "size",
            "overwrite": "switch",
        },
    ),
    "CompileMonitor": Target(callbacks.CompileMonitor, {}, {"max_compiles": "size or None"}),
    "EarlyStopping": Target(
        callbacks.EarlyStopping,
        {},
        {"monitor": "monitor", "mode": "word", "patience": "count", "min_delta": "not negative"},
    ),
    "FlightRecorder": Target(
        callbacks.FlightRecorder,
        {"directory": "a"},
        {"directory": "path", "every": "count", "on": "word"},
    ),
    "LearningRate": Target(callbacks.LearningRate, {}, {"schedule": "schedule"}),
    "Logging": Target(callbacks.Logging, {}, {"log": "function or None", **EVERY}),
    "Monitor": Target(
        callbacks.Monitor, {"monitor": "val/loss"}, {"monitor": "monitor", "mode": "word"}
    ),
    "NaNGuard": Target(callbacks.NaNGuard, {}, {"every": "count"}),
    "NormMonitor": Target(
        callbacks.NormMonitor, {}, {"params": "function or None", "depth": "size"}
    ),
    "Profiler": Target(
        callbacks.Profiler,
        {"directory": "a"},
        {"directory": "path", "start": "size", "steps": "count"},
    ),
    "ProgressBar": Target(
        callbacks.ProgressBar, {}, {"seconds": "not negative", "only": "names", "file": "file"}
    ),
    "Prune": Target(callbacks.Prune, {"trial": None}, {"monitor": "monitor", "mode": "word"}),
    "CSV": Target(loggers.CSV, {"path": "a"}, {"path": "path", **EVERY}),
    "JSONLines": Target(loggers.JSONLines, {"path": "a"}, {"path": "path", **EVERY}),
    "MLflow": Target(
        loggers.MLflow,
        {"experiment": "a"},
        {
            **EVERY,
            "experiment": "text",
            "tracking_uri": "text or None",
            "name": "text or None",
            "params": "table",
        },
    ),
    "TensorBoard": Target(
        loggers.TensorBoard,
        {"directory": "a"},
        {**EVERY, "directory": "path", "hparams": "table", "histograms": "count or None"},
    ),
    "WandB": Target(
        loggers.WandB,
        {"project": "a"},
        {
            **EVERY,
            "project": "text",
            "directory": "path",
            "name": "text or None",
            "mode": "text or None",
            "config": "table",
        },
    ),
    "BinaryMetrics": Target(
        metrics.BinaryMetrics,
        {"scores": X, "targets": Y},
        {
            "scores": "numbers",
            "targets": "numbers",
            "mask": "mask",
            "weights": "weights",
            "threshold": "probability",
            "num_bins": "count",
            "from_logits": "switch",
            "beta": "positive or None",
        },
    ),
    "BinaryCurves": Target(
        metrics.BinaryCurves,
        {"scores": X, "targets": Y},
        {"scores": "numbers", "targets": "numbers", "mask": "mask", "weights": "weights"},
    ),
    "MultilabelMetrics": Target(
        metrics.MultilabelMetrics,
        {"scores": SCORES, "targets": SCORES},
        {
            "scores": "numbers",
            "targets": "numbers",
            "mask": "mask",
            "weights": "weights",
            "threshold": "probability",
            "beta": "positive or None",
            "specificity": "switch",
            "samples": "switch",
        },
    ),
    "MulticlassAUC": Target(
        metrics.MulticlassAUC,
        {"scores": SCORES, "targets": Y},
        {
            "scores": "numbers",
            "targets": "labels",
            "mask": "mask",
            "weights": "weights",
            "num_bins": "count",
            "from_logits": "switch",
        },
    ),
    "MultilabelAUC": Target(
        metrics.MultilabelAUC,
        {"scores": SCORES, "targets": SCORES},
        {
            "scores": "numbers",
            "targets": "numbers",
            "mask": "mask",
            "weights": "weights",
            "num_bins": "count",
            "from_logits": "switch",
        },
    ),
    "CalibrationError": Target(
        metrics.CalibrationError,
        {"probabilities": SCORES, "targets": Y},
        {
            "probabilities": "numbers",
            "targets": "labels",
            "mask": "mask",
            "weights": "weights",
            "num_bins": "count",
        },
    ),
    "ClassificationMetrics": Target(
        metrics.ClassificationMetrics,
        {"preds": SCORES, "targets": Y, "loss": 0.0, "num_classes": 3},
        {
            "preds": "numbers",
            "targets": "labels",
            "loss": "numbers",
            "num_classes": "count",
            "mask": "mask",
            "weights": "weights",
            "top_k": "count or None",
            "beta": "positive or None",
            "specificity": "switch",
        },
    ),
    "WeightedKappa": Target(
        metrics.WeightedKappa,
        {"preds": SCORES, "targets": Y, "num_classes": 3},
        {
            "preds": "numbers",
            "targets": "labels",
            "num_classes": "count",
            "mask": "mask",
            "weights": "weights",
        },
    ),
    "ConfusionMatrix": Target(
        metrics.ConfusionMatrix,
        {"preds": SCORES, "targets": Y, "num_classes": 3},
        {
            "preds": "numbers",
            "targets": "labels",
            "num_classes": "count",
            "mask": "mask",
            "weights": "weights",
        },
    ),
    "LanguageModelMetrics": Target(
        metrics.LanguageModelMetrics,
        {"logits": SCORES, "targets": Y},
        {
            "logits": "numbers",
            "targets": "labels",
            "mask": "mask",
            "weights": "weights",
            "num_bytes": "whole or None",
        },
    ),
    "RegressionMetrics": Target(
        metrics.RegressionMetrics,
        {"preds": X, "targets": X},
        {
            "preds": "numbers",
            "targets": "numbers",
            "mask": "mask",
            "weights": "weights",
            "num_features": "size or None",
        },
    ),
    "RankCorrelation": Target(
        metrics.RankCorrelation,
        {"preds": X, "targets": X},
        {"preds": "numbers", "targets": "numbers", "mask": "mask", "weights": "weights"},
    ),
    "ExactMatch": Target(
        metrics.ExactMatch,
        {"preds": SCORES, "targets": SCORES},
        {"preds": "numbers", "targets": "numbers", "mask": "mask", "weights": "weights"},
    ),
    "RetrievalMetrics": Target(
        metrics.RetrievalMetrics,
        {"scores": SCORES, "targets": SCORES},
        {
            "scores": "numbers",
            "targets": "numbers",
            "mask": "mask",
            "weights": "weights",
            "top_k": "count",
        },
    ),
    "from_metrax": Target(
        metrics.from_metrax,
        {"metric": Brightness.from_model_output(SCORES)},
        {"metric": "metric of metrax", "name": "text or None"},
    ),
    "Mean": Target(
        metrics.Mean, {"values": X}, {"values": "numbers", "weights": "numbers or None"}
    ),
    "Sum": Target(
        metrics.Sum, {"values": X}, {"values": "numbers", "mask": "mask", "weights": "weights"}
    ),
    "Collect": Target(metrics.Collect, {"scores": X}, {"mask": "mask", "scores": "anything kept"}),
    "Counts": Target(metrics.Counts, {}, {"counts": "counts"}),
    "Totals": Target(metrics.Totals, {}, {"totals": "counts"}),
    "MetricsCollection": Target(metrics.MetricsCollection, {}, {"parts": "metrics"}),
    "Mapped": Target(
        metrics.Mapped, {"metrics": jax.vmap(metrics.Mean)(X)}, {"metrics": "metrics"}
    ),
    "WithLoss": Target(
        metrics.WithLoss,
        {"metrics": metrics.Mean(X), "losses": X},
        {"metrics": "metrics", "losses": "numbers", "weights": "numbers or None"},
    ),
    "WithSkipped": Target(
        metrics.WithSkipped,
        {"metrics": metrics.Mean(X), "skipped": 1},
        {"metrics": "metrics", "skipped": "numbers"},
    ),
    "Batches": Target(
        data.Batches,
        {"arrays": X, "batch_size": 2},
        {
            "arrays": "arrays",
            "batch_size": "count",
            "shuffle": "switch",
            "seed": "natural",
            "drop_last": "switch",
            "on_device": "switch or None",
        },
    ),
    "pad_batch": Target(
        data.pad_batch, {"batch": X[:2], "size": 8}, {"batch": "arrays", "size": "count"}
    ),
    "ema": Target(
        compat.ema,
        {"optimizer": SGD},
        {"optimizer": "optimizer", "decay": "share", "debias": "switch"},
    ),
    "freeze": Target(
        compat.freeze,
        {"optimizer": SGD, "frozen": "a"},
        {"optimizer": "optimizer", "frozen": "patterns"},
    ),
    "lora": Target(
        compat.lora,
        {"model": LINEAR},
        {"model": "model", "rank": "count", "on": "patterns", "alpha": "positive or None"},
    ),
    "mixed_precision": Target(
        compat.mixed_precision, {"model": LINEAR, "policy": None}, {"policy": "policy"}
    ),
    "norms_of": Target(compat.norms_of, {"tree": X}, {"depth": "size"}),
    "track_norms": Target(
        compat.track_norms, {"optimizer": SGD}, {"optimizer": "optimizer", "depth": "size"}
    ),
    "skip_nonfinite": Target(compat.skip_nonfinite, {}, {"optimizer": "optimizer"}),
    "skip_spikes": Target(
        compat.skip_spikes,
        {"optimizer": SGD},
        {"optimizer": "optimizer", "times": "above one", "window": "count"},
    ),
    "adapt_argument": Target(
        lambda **given: compat.adapt_argument("encoder", "model", given["given"]),
        {},
        {"given": "model"},
        {"given": "encoder"},
    ),
    "as_model": Target(
        lambda **given: compat.as_model(given["obj"]),
        {},
        {"obj": "model"},
        {"obj": "as_model|wraps"},
    ),
    "as_optimizer": Target(
        lambda **given: compat.as_optimizer(given["obj"]),
        {},
        {"obj": "optimizer"},
        {"obj": "as_optimizer|wraps"},
    ),
    "EquinoxModel": Target(
        compat.EquinoxModel,
        {"model": eqx.nn.Identity()},
        {"model": "no module", "unpack": "switch"},
        {"model": "EquinoxModel"},
    ),
    "register": Target(
        compat.register,
        {"prefix": "toynet", "adapter": kit.Linear},
        {"prefix": "text", "adapter": "adapter"},
    ),
    "checkpoint.save": Target(
        checkpoint.save, {"path": "a", "tree": X}, {"path": "path", "note": "note"}
    ),
    "checkpoint.begin": Target(checkpoint.begin, {"path": "a", "tree": X}, {"path": "path"}),
    "checkpoint.load": Target(
        checkpoint.load,
        {"path": "a", "like": X},
        {"path": "path", "only": "text or None", "rename": "table"},
    ),
    "read": Target(runs.read, {}, {"folder": "path"}),
    "diff": Target(runs.diff, {"one": "a", "other": "b"}, {"one": "path", "other": "path"}),
    "Trace": Target(callbacks.Trace, {"directory": "a"}, {"directory": "path", "every": "count"}),
    "checkpoint.manifest": Target(checkpoint.manifest, {}, {"path": "path"}),
    "checkpoint.sweep": Target(
        checkpoint.sweep, {"folder": "a"}, {"folder": "path", "names": "names"}
    ),
    "checkpoint.check_writable": Target(checkpoint.check_writable, {}, {"path": "path"}),
    "checkpoint.exists": Target(checkpoint.exists, {}, {"path": "path"}),
    "checkpoint.remove": Target(checkpoint.remove, {}, {"path": "path"}),
    "checkpoint.AppendOnly": Target(checkpoint.AppendOnly, {}, {"items": "rows"}),
    "convert": Target(
        solstice.convert,
        {"source": WEIGHTS, "like": WEIGHTS, "layout": "flax"},
        {
            "layout": "layout",
            "like_layout": "layout or None",
            "layers": "table",
            "unused": "names",
            "flattened": "table",
            "to": "path or None",
        },
    ),
    "verify_resume": Target(
        kit.verify_resume,
        {"make_run": len, "kill_at": [1]},
        {"make_run": "function", "kill_at": "steps", "timeout": "positive or None"},
    ),
    "blobs": Target(kit.blobs, {}, {"num_batches": "count", "batch_size": "count"}),
    "Linear": Target(kit.Linear, {}, {"size": "count"}),
    "Sgd": Target(kit.Sgd, {}, {"rate": "finite", "momentum": "finite"}),
    "write_package": Target(
        write_package,
        {"name": "toynet", "folder": Path("a")},
        {"name": "text", "folder": "path"},
    ),
}
NO_LAYOUT = {
    "5": lambda: 5,
    "another name": lambda: "theano",
    "empty": dict,
    "numbers": lambda: {"dense": {"kernel": 1}},
    "keys": lambda: {1: {}},
}
KINDS["layout or None"] = NO_LAYOUT
KINDS["layout"] = NO_LAYOUT | NONE
KINDS["optimizer or None"] = {k: v for k, v in NO_ADAPTER.items() if k != "None"}
KINDS["callbacks or None"] = {k: v for k, v in KINDS["callbacks"].items() if k != "None"}
KINDS["whole or None"] = NO_ARRAY | COMPLEX | {"halves": lambda: np.full(4, 0.5)}
KINDS["rows"] = {"5": lambda: 5, "None": lambda: None, "a function": lambda: len}
KINDS["note"] = KINDS["table"] | {"an object in": lambda: {"a": object()}}
KINDS["hyperparameters"] = KINDS["note"] | {
    "a class": lambda: dict,
    "keys within": lambda: {"a": {1: 2}},
    "a function without a name": lambda: {"a": lambda x: x},
    "a broken object": lambda: {"a": Broken()},
    "a deleted array": lambda: {"a": deleted()},
    "complex": lambda: {"a": [1j]},
    "a key": lambda: {"a": jax.random.key(0)},
    "many numbers": lambda: {"a": np.zeros(257)},
    "two of one name": lambda: {"a": {"b": 1}, "a.b": 2},
}
KINDS["no module"] = {"5": lambda: 5, "None": lambda: None, "an array": lambda: np.ones(3)}

COUNTS = {"np.int64": np.int64, "np.uint8": np.uint8, "no axis": np.array, "jax": jnp.asarray}
NUMBERS = {**COUNTS, "float32": np.float32, "int": int}
GOOD: dict[str, tuple[Any, dict[str, Callable[[Any], Any]]]] = {
    "count": (3, COUNTS),
    "count or None": (3, COUNTS),
    "size": (1, COUNTS),
    "size or None": (1, COUNTS),
    "tries": (2, COUNTS),
    "natural": (3, COUNTS),
    "positive": (1.0, NUMBERS),
    "above one": (3.0, NUMBERS),
    "positive or None": (1.0, NUMBERS),
    "not negative": (1.0, NUMBERS),
    "finite": (1.0, NUMBERS),
    "share": (0.0, NUMBERS),
    "probability": (1.0, NUMBERS),
    "switch": (True, {"np.bool": np.bool_}),
    "names": (("a", "b"), {"list": list, "iterator": iter, "set": lambda x: dict.fromkeys(x)}),
    "path": ("a", {"Path": Path}),
}
"""By meaning, a good value, and what else serves as just that value."""
