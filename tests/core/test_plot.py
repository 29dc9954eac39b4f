"""Plots: what is drawn is what the history has."""

import matplotlib.image
import numpy as np
import pytest

import solstice
from solstice.history import History


def history_of(epochs=4, **metrics):
    history = History()
    for epoch in range(epochs):
        for mode in ("train", "val"):
            row = {"step": 10 * (epoch + 1), "epoch": epoch, "mode": mode, "span": "epoch"}
            shift = 0.5 if mode == "val" else 0.0
            row |= {name: values[epoch] + shift for name, values in metrics.items()}
            history.rows.append(row)
    return history


def lines_of(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_a_panel_has_training_and_validation_and_marks_the_best(tmp_path):
    history = history_of(loss=[3.0, 1.0, 2.0, 4.0], accuracy=[0.1, 0.2, 0.4, 0.3])
    figure = history.plot(tmp_path / "curves.png")
    loss, accuracy = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy"]
    np.testing.assert_array_equal(lines_of(loss)["train"].get_xydata().T[0], [10, 20, 30, 40])
    np.testing.assert_array_equal(lines_of(loss)["val"].get_ydata(), [3.5, 1.5, 2.5, 4.5])
    stars = [
        [*line.get_xydata()[0]]
        for axes in figure.axes
        for line in axes.lines
        if line.get_marker() == "*"
    ]
    assert stars == [[20, 1.5], [30, 0.9]]
    assert accuracy.get_xlabel() == "step"
    height, width, _ = matplotlib.image.imread(tmp_path / "curves.png").shape
    assert width > 1000
    assert height > 400


def test_a_long_run_is_smoothed_over_what_it_was():
    values = [float(i % 2) for i in range(50)]
    figure = history_of(50, loss=values).plot(smooth=0.9)
    lines = lines_of(figure.axes[0])
    smooth = lines["train, smoothed"].get_ydata()
    assert abs(smooth[-1] - 0.5) < 0.1
    assert smooth[0] == values[0]  # corrected for its start
    raw = [line for line in figure.axes[0].lines if line.get_alpha() == 0.25]
    np.testing.assert_array_equal(raw[0].get_ydata(), values)


def test_a_short_run_is_drawn_as_it_was():
    values = [float(i % 2) for i in range(29)]
    line = lines_of(history_of(29, loss=values).plot().axes[0])["train"]
    np.testing.assert_array_equal(line.get_ydata(), values)


def test_only_what_is_asked_for_is_drawn_and_too_much_is_told():
    many = {f"m{i}": [1.0] * 4 for i in range(12)}
    history = history_of(**many)
    assert [axes.get_title() for axes in history.plot(only=["m3", "m1"]).axes] == ["m3", "m1"]
    figure = history.plot()
    assert len(figure.axes) == 9
    assert "3 metrics more: only=['m9', ...]" in figure.get_supxlabel()
    with pytest.raises(ValueError, match="there are: \\['m0'"):
        history.plot(only="loss")
    with pytest.raises(ValueError, match="no metrics"):
        History().plot()


def test_runs_are_overlaid_by_name_in_colours_of_their_own(tmp_path):
    one, other = history_of(loss=[4.0, 3, 2, 1]), history_of(loss=[5.0, 4, 3, 2])
    other.to_csv(tmp_path / "sgd.csv")
    figure = solstice.compare({"adam": one, "sgd": tmp_path / "sgd.csv"}, tmp_path / "c.png")
    lines = lines_of(figure.axes[0])
    assert {*lines} == {"adam train", "adam val", "sgd train", "sgd val"}
    np.testing.assert_array_equal(lines["sgd train"].get_ydata(), [5, 4, 3, 2])
    assert lines["adam train"].get_color() == lines["adam val"].get_color()
    assert lines["adam train"].get_color() != lines["sgd train"].get_color()
    assert (tmp_path / "c.png").exists()
    assert "sgd val" in lines_of(solstice.compare([one, tmp_path / "sgd.csv"]).axes[0])


def test_what_is_no_run_is_told():
    with pytest.raises(TypeError, match="several runs"):
        solstice.compare("a.csv")
    with pytest.raises(TypeError, match="a run is a History"):
        solstice.compare([3])


def test_nan_breaks_no_plot():
    figure = history_of(loss=[float("nan")] * 4).plot()
    assert not [line for line in figure.axes[0].lines if line.get_marker() == "*"]


def test_a_notebook_shows_a_plot_without_pyplot():
    history = history_of(loss=[1.0, 2.0, 3.0, 4.0])
    assert history.plot()._repr_png_().startswith(b"\x89PNG")
