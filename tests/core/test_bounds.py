"""Intervals of metrics in plots, tables and bars."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice import metrics
from solstice._bounds import is_bound
from solstice.callbacks import ProgressBar

VALUES = [[3.0, 2.0, 3.5, 0.2], [1.0, 0.5, 2.0, 0.1], [2.0, 1.0, 4.0, 0.3]]
NAMES = ["loss", "loss_low", "loss_high", "loss_se"]


class Bounded(solstice.Experiment):
    """Its metrics are the entries of a batch; those of its second member are 10 more."""

    is_population: bool = False

    def train_step(self, batch):
        return self, self.eval_step(batch)[1]

    def eval_step(self, batch):
        def of(values):
            named = dict(zip([*NAMES, "accuracy", "top_low"], [*values, 0.5, 0.25], strict=True))
            return metrics.MetricsCollection(**{n: metrics.Mean(v) for n, v in named.items()})

        both = jax.vmap(of)(jnp.stack([batch[0], batch[0] + 10]))
        return self, metrics.Mapped(both) if self.is_population else of(batch[0])


def fitted(callbacks=(), *, is_population=False):
    def data(epoch):
        return [np.float32([VALUES[epoch]])]

    trainer = solstice.Trainer(callbacks)
    trainer.fit(Bounded(is_population), data, data, num_epochs=3)
    return trainer.history


def test_a_bound_has_a_metric_and_the_other_bounds_beside_it():
    found = {name for name in [*NAMES, "top_low", "low"] if is_bound(name, {*NAMES, "top", "low"})}
    assert found == {*NAMES[1:]}


@pytest.mark.parametrize("is_population", [False, True])
def test_a_panel_shows_the_interval_as_a_band(is_population):
    history = fitted(is_population=is_population)
    figure = history.plot()
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy", "top_low"]
    (band,) = figure.axes[0].collections
    corners = {tuple(corner) for path in band.get_paths() for corner in path.vertices.tolist()}
    assert {(step, row[at]) for step, row in enumerate(VALUES, 1) for at in (1, 2)} <= corners
    assert not figure.axes[1].collections
    asked = history.plot(only=["loss_low"])
    assert [axes.get_title() for axes in asked.axes] == ["loss_low"]


def test_tables_and_bars_show_the_metrics_themselves(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = io.StringIO()
    history = fitted([ProgressBar(file=out)])
    assert "val/loss 3.0000  val/accuracy 0.5000\n" in out.getvalue()
    assert "loss_low" not in repr(history) + history._repr_html_()
    assert "val/top_low" in repr(history)
    assert history.series("val/loss_low")[1] == [2.0, 0.5, 1.0]
