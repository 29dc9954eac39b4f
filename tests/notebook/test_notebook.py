"""A notebook, run by a kernel: what its reader sees, and what the stop button leaves."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("ipywidgets")

jupyter = pytest.importorskip("jupyter_client")

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "notebooks.md"


A_DAY = 86_400
NO_HURRY = {"timeout": None, "startup_timeout": A_DAY, "iopub_timeout": A_DAY}


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The page on notebooks, of which each block is a cell, after it was run."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    blocks += ["trainer.history", "figure = trainer.history.plot()\nfigure"]
    cells = [nbformat.v4.new_code_cell(block) for block in blocks]
    made = nbformat.v4.new_notebook(cells=cells)
    folder = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MPLBACKEND", raising=False)  # pictures are in the notebook, as for a user
        client = nbclient.NotebookClient(made, resources=folder, **NO_HURRY)
        return client.execute()


def seen(cell, kind):
    return [o["data"][kind] for o in cell.outputs if kind in o.get("data", {})]


def text(cell, name):
    return "".join(o["text"] for o in cell.outputs if o.get("name") == name)


def test_the_bars_are_those_of_the_notebook_and_a_line_of_each_epoch_stays(notebook):
    training = next(cell for cell in notebook.cells if "num_epochs=3" in cell.source)
    bars = seen(training, "application/vnd.jupyter.widget-view+json")
    assert len(bars) == 1 + 3 * 2  # of the run, and in each epoch of training and validation
    lines = text(training, "stderr").strip().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert all("val/loss" in line for line in lines)


def test_the_history_is_a_table_and_its_plot_a_picture(notebook):
    table, picture = notebook.cells[-2:]
    assert seen(table, "text/html")[0].startswith("<table>")
    assert seen(picture, "image/png")


@pytest.fixture
def kernel(tmp_path):
    manager, client = jupyter.manager.start_new_kernel(startup_timeout=A_DAY, cwd=str(tmp_path))
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


TRAINING = """
import solstice
import jax.numpy as jnp
from typing import Any

class Count(solstice.Experiment):
    total: Any
    def train_step(self, batch):
        return solstice.replace(self, total=self.total + jnp.sum(batch)), {"total": self.total}
    def eval_step(self, batch):
        return self, {"total": self.total}

class Tells(solstice.Callback):
    every = 40
    def on_step_end(self, record):
        if record.step == 40:
            print("forty", flush=True)

trainer = solstice.Trainer([solstice.callbacks.ProgressBar(), Tells()])
exp = trainer.fit(Count(jnp.zeros(())), [jnp.ones(2)] * 50, num_epochs=10_000_000)
"""


def test_the_stop_button_leaves_the_newest_experiment(kernel):
    manager, client = kernel
    client.execute(TRAINING)
    told = {}
    while told.get("text") != "forty\n":
        told = client.get_iopub_msg()["content"]
        assert "ename" not in told, told
    manager.interrupt_kernel()
    reply = client.get_shell_msg()["content"]
    assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")

    check = "assert float(trainer.experiment.total) >= 2 * 40 and 'exp' not in globals()"
    reply = client.execute(check, reply=True)["content"]
    assert reply["status"] == "ok", reply
