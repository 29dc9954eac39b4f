"""Each logger is read back by its own official reader, before and after a kill and a resume."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from solstice import runs

LOGGERS = ["CSV", "JSONLines", "TensorBoard", "MLflow", "WandB"]
RUN_ONE = Path(__file__).parent / "run_one.py"


ENDS = {"SIGKILL": -9, "SIGTERM": 143, "error": 1}
"""How a run may end, and with which code."""


def run(name, folder, at=0, how="SIGKILL"):
    """A run to its end, or one that ends itself at a step."""
    env = {**os.environ, "WANDB_SILENT": "true", "GIT_PYTHON_REFRESH": "quiet"}
    done = subprocess.run(
        [sys.executable, str(RUN_ONE), name, str(folder), str(at), how],
        capture_output=True,
        text=True,
        check=False,
        env=env,
    )
    assert done.returncode == (ENDS[how] if at else 0), done.stderr[-4000:]
    assert how != "error" or not at or "as asked" in done.stderr


def expected():
    """All that there is to log: (name, step) -> value, of the loop by hand."""
    points, total, totals, window, epoch = {}, np.float32(0), [], [], []
    for step in range(1, 17):
        total = np.float32(total + (step - 1) % 4)
        totals.append(total)
        window.append(total)
        epoch.append(total)
        if step % 2 == 0:
            points["train_steps/loss", step] = np.mean(window)
            window = []
        if step % 4 == 0:
            points["train/loss", step] = np.mean(epoch)
            points["val/loss", step] = total
            epoch = []
    sizes = {(n.replace("loss", "size"), s): 2.5 * v for (n, s), v in points.items() if n[0] == "t"}
    members = {  # of one, three and NaN times the loss
        (n.replace("loss", f"all/each/{name}"), s): factor * v
        for (n, s), v in points.items()
        for name, factor in (("best", 3), ("median", 2))
        if n[0] == "t"
    }
    return {**points, **sizes, **members}


def read_table(frame):
    import pandas as pd

    points = []
    for row in frame.to_dict("records"):
        split = row["mode"] + ("_steps" if row["span"] == "steps" else "")
        points += [
            ((f"{split}/{name}", row["step"]), row[name])
            for name in ("loss", "size")
            if not np.isnan(row[name])
        ]
        cell = row["all/each"]
        if not pd.isna(cell):
            one, three, nan = (json.loads(cell) if isinstance(cell, str) else cell)["members"]
            assert np.isnan(nan or np.nan)  # pandas reads NaN in JSON as None
            points.append(((f"{split}/all/each/best", row["step"]), three))
            points.append(((f"{split}/all/each/median", row["step"]), one + (three - one) / 2))
    return points


def check_info(folder):
    """A file of rows has no place for hyper-parameters, which are beside it."""
    assert runs.read(folder).hyperparameters == {"net": {"width": 8}, "depth": 2}


def read_csv(folder, ended):
    import pandas as pd

    check_info(folder)
    return read_table(pd.read_csv(folder / "a.csv"))


def read_jsonlines(folder, ended):
    import pandas as pd

    check_info(folder)
    return read_table(pd.read_json(folder / "a.jsonl", lines=True))


def read_tensorboard(folder, ended):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "board"), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    assert {*tags["histograms"]} <= {"params/total", "train/all/each", "train_steps/all/each"}
    steps = [h.step for h in events.Histograms("params/total")]
    assert steps == [4, 8, 12, 16][: len(steps)]
    assert len(steps) == 4 or not ended
    hparams = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert all(text in hparams for text in (b"rate", b"mlp", b"net.width", b"depth"))
    return [((tag, e.step), e.value) for tag in tags["scalars"] for e in events.Scalars(tag)]


def read_mlflow(folder, ended):
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    found = mlflow.search_runs(experiment_names=["digits"])
    assert len(found) == 1
    params = {name.removeprefix("params."): found[name][0] for name in found if "params." in name}
    assert params == {"net.width": "8", "depth": "2", "rate": "0.5"}
    assert found["status"][0] == "FINISHED" or not ended
    client = mlflow.MlflowClient()
    names = [column.removeprefix("metrics.") for column in found if column.startswith("metrics.")]
    return [
        ((name, point.step), point.value)
        for name in names
        for point in client.get_metric_history(found["run_id"][0], name)
    ]


def read_wandb(folder, ended):
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    points, config = [], {}
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1  # one run, however often it was resumed
    for file in files:
        store = DataStore()
        store.open_for_scan(str(file))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            for item in record.run.config.update:
                config[item.key] = json.loads(item.value_json)
            if record.WhichOneof("record_type") != "history":
                continue
            items = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            points += [((n, items["step"]), v) for n, v in items.items() if "/" in n]
    assert config.items() >= {"net": {"width": 8}, "depth": 2, "rate": 0.5}.items()
    return points


READERS = {
    "CSV": read_csv,
    "JSONLines": read_jsonlines,
    "TensorBoard": read_tensorboard,
    "MLflow": read_mlflow,
    "WandB": read_wandb,
}


@pytest.mark.filterwarnings("default")  # of the readers, which are not ours
@pytest.mark.parametrize("name", LOGGERS)
@pytest.mark.parametrize(
    ("how", "steps"),
    [("SIGKILL", [7]), ("SIGKILL", [7, 9, 15]), ("SIGTERM", [7, 9, 15]), ("error", [7, 15])],
    ids=["killed", "killed thrice", "terminated thrice", "failed twice"],
)
def test_its_own_reader_finds_every_row_once(name, how, steps, tmp_path):
    """Checkpoints are at 5, 10 and 15, and where SIGTERM comes; what came later comes again.

    What W&B has in memory dies with SIGKILL, which is documented: the rows after that are there.
    """
    loses = (name, how) == ("WandB", "SIGKILL")
    for step in steps:
        run(name, tmp_path, step, how)
        if not loses:
            saved = {(n, at) for n, at in expected() if at <= step // 5 * 5}
            assert {*check(READERS[name](tmp_path, ended=False))} >= saved
    run(name, tmp_path)
    found = {*check(READERS[name](tmp_path, ended=True))}
    assert found >= {(n, at) for n, at in expected() if at > steps[-1] or not loses}


def check(points):
    """The points, none of which is there twice or another than that of the loop by hand."""
    found, wanted = dict(points), expected()
    assert len(points) == len(found), "a row is there twice"
    for point, value in found.items():
        np.testing.assert_allclose(value, wanted[point], rtol=1e-6, err_msg=str(point))
    return found


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("name", "aside"), [("CSV", "a-1.csv"), ("TensorBoard", "board-1")])
def test_a_run_that_begins_anew_keeps_what_an_earlier_one_wrote(name, aside, tmp_path):
    run(name, tmp_path, 4)  # before the first checkpoint
    run(name, tmp_path)
    assert {*check(READERS[name](tmp_path, ended=True))} == {*expected()}
    assert (tmp_path / aside).exists()
