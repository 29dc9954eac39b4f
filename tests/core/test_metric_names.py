"""Names of metrics that a tool refuses are replaced, and said once."""

import re
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import solstice
from solstice.loggers import CSV, Logger, MLflow, TensorBoard
from solstice.loggers._names import Names

ALLOWED: dict[type[Logger], str] = {
    MLflow: r"[\w\-. ]+(/[\w\-. ]+)*",  # `_validate_metric_name` of MLflow 3, on any system
    TensorBoard: r"[-/\w.]*",  # `_clean_tag` of tensorboardX
    CSV: r"[^\n\r\0\v\f\x1c-\x1e\x85\u2028\u2029]*",
}
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


class Named(solstice.Experiment):
    names: tuple[str, ...]

    def train_step(self, batch):
        return self, {name: batch.mean() + i for i, name in enumerate(self.names)}

    def eval_step(self, batch):
        return self, {}


class Keeps(Logger):
    """Takes letters alone."""

    rows: list[Any]

    def open(self, start):
        self.rows = getattr(self, "rows", [])

    def write(self, row):
        self.rows.append(row)

    def name_of(self, metric):
        return re.sub("[^a-z]", "_", metric)


def log(logger, *names, epochs=2):
    batches = [np.zeros(2, np.float32)] * 2
    return solstice.Trainer([logger]).fit(Named(names), batches, num_epochs=epochs)


@pytest.mark.parametrize("tool", ALLOWED)
@given(name=NAMES)
@example("recall@5")
@example("f1(macro)")
@example("../up//twice/./here/")
@example("größe")
@example("a\nb")
@example("x" * 400)
def test_each_name_becomes_one_that_the_tool_takes(tool, name):
    found = tool.name_of(None, name)
    assert re.fullmatch(ALLOWED[tool], found)
    assert tool.name_of(None, found) == found
    if re.fullmatch(ALLOWED[tool], name) and len(name) < 100 and set(name) - set("./"):
        assert ".." in name or "/." in name or "./" in name or found == name


@given(names=st.lists(NAMES, unique=True, max_size=8))
@example(["a@b", "a#b", "a_b"])
def test_no_two_metrics_have_one_name(names):
    tool = MLflow.name_of
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Names("MLflow", lambda name: tool(None, name)).of(names)
        again = Names("MLflow", lambda name: tool(None, name)).of(names[::-1])
    assert found == again  # in each process alike
    assert len({*found.values()}) == len(names)


def test_what_is_renamed_is_said_once_and_nothing_is_lost():
    logger = Keeps()
    with pytest.warns(UserWarning, match="Keeps does not accept all names") as told:
        log(logger, "recall@k", "recall#k", "loss")
    assert len(told) == 1
    assert "`recall@k` as `recall_k_" in str(told[0].message)
    first, second = (row for row in logger.rows if row["mode"] == "train")
    assert [*first] == [*second]
    assert sorted(value for name, value in first.items() if name.startswith("recall")) == [0, 1]


def test_a_csv_whose_metrics_have_breaks_in_their_names_is_read_back(tmp_path):
    with pytest.warns(UserWarning, match="CSV does not accept all names"):
        log(CSV(tmp_path / "a.csv"), "two\nlines", "with,comma", 'a "quote"')
    history = solstice.read_history(tmp_path / "a.csv")
    assert {*history.names()} == {"train/two lines", "train/with,comma", 'train/a "quote"'}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_takes_what_it_refused(tmp_path):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    names = "recall-5", "recall@5", "f1(macro)", "größe"
    logger = MLflow("e", tracking_uri=f"sqlite:///{tmp_path}/a.db")
    with pytest.warns(UserWarning, match=r"`f1\(macro\)` as `f1_macro_`, `recall@5` as `recall_5`"):
        log(logger, *names)
