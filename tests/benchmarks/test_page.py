"""The page is made from saved results alone, of one machine."""

import pytest
import tables
from results import OnMesh, Result, Results, load_accelerator, load_all, load_mesh, ratios

report = pytest.importorskip("report")  # whose workloads need Optax
chart = pytest.importorskip("chart")  # which needs Matplotlib


def results(workload, **seconds):
    """Results in which each contender takes these seconds in each of two rounds."""
    return Results(
        workload,
        {
            name: Result(name, first_steps=[1.0], seconds={(0, 1): s, (1, 1): 2 * s}, peaks=[10])
            for name, s in seconds.items()
        },
        "nox -s bench",
        "one machine",
    )


def test_results_come_back_from_their_file(tmp_path):
    saved = results("A", limit=1.0, hand_written=1.5)
    saved.contenders["nnx"] = Result("Flax NNX", why="flax is not installed")
    saved.save(tmp_path)
    assert load_all(tmp_path) == {"A": saved}


def test_results_of_two_machines_are_not_mixed(tmp_path):
    results("A", limit=1.0).save(tmp_path)
    other = results("D", limit=1.0)
    other.machine = "another"
    other.save(tmp_path)
    with pytest.raises(ValueError, match="'another'"):
        load_all(tmp_path)


def test_a_ratio_is_within_a_round_and_to_the_slowest():
    found = results("A", limit=1.0, hand_written=2.0, nnx=6.0).contenders
    assert ratios(found["nnx"], [found["limit"]]) == [6.0, 6.0, 6.0]
    assert ratios(found["nnx"], [found["limit"], found["hand_written"]]) == [3.0, 3.0, 3.0]


def test_the_page_and_the_chart_of_partial_results(tmp_path):
    """Some workloads, one with contenders that did not run, and a chart of the others."""
    for name in ("A", "C", "E", "F-layers", "evaluation"):
        results(name, limit=1.0, hand_written=1.5, ready_default=1.25).save(tmp_path)
    failed = results("B32", limit=1.0, hand_written=1.5)
    failed.contenders["keras_1"] = Result("Keras 3", why="failed")
    failed.save(tmp_path)
    results("reading-python", read=2.0, train=1.0, fit=3.0).save(tmp_path)
    results("population-E", fits=3.0, population=1.0).save(tmp_path)
    start = Result("by hand", first_steps=[2.0], again=[0.5])
    Results("start-A", {"hand_written": start}, "nox -s bench", "one machine").save(tmp_path)
    page = report.page(load_all(tmp_path), [])
    assert "No accelerator was at hand" in page
    assert "takes 1.25 times as long as one compiled scan" in page
    assert ", a loop by hand 1.50 times." in page
    assert "| Keras 3 | failed |" in page
    assert "| a generator in Python |" in page
    assert " 1.50 | 1.50 to 1.50 |" in page  # `fit`, over the longer of reading and training
    assert "| population | 0.33 | 0.33 to 0.33 |" in page
    assert "| by hand | 2.00 | 0.50 | 0.25 |" in page
    (tmp_path / "page.md").write_text(page)
    shown = chart.read(page)
    assert shown["A: MLP 784-64-10, batch 32"]["ready_default"]["x the limit"] == "1.25"
    chart.draw(tmp_path / "page.md", tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 1000


def test_every_table_is_on_the_page_and_every_contender_has_a_file():
    assert sorted(tables.ORDER) == sorted(tables.TABLES)
    for table in tables.TABLES.values():
        for name in table.contenders:
            path = table.module(name).replace(".", "/")
            assert (tables.HERE / "contenders" / f"{path}.py").exists(), name
        assert set(table.close) <= set(table.contenders)


def test_the_table_of_a_mesh_is_on_the_page(tmp_path):
    assert load_mesh(tmp_path) is None
    mesh = OnMesh({"split": {"step": 2.0, "scan": 1.0, "Trainer": 1.5}}, 25, machine="two cores")
    mesh.save(tmp_path)
    results("A", limit=1.0, hand_written=1.5).save(tmp_path)
    page = report.page(load_all(tmp_path), [], load_mesh(tmp_path))
    assert "nox -s bench\nnox -s bench_mesh\n```" in page
    assert "the shortest of 25 interleaved rounds" in page
    assert "two cores" in page
    assert "| split | 2.00 | 1.00 | 1.50 | 0.75 | 1.50 |" in page


def test_the_table_of_an_accelerator_is_on_the_page(tmp_path):
    rows = '[{"what": "1 x H100, gpu"}, {"what": "loop", "value": "2 ms", "limit": "1.2 x"}]'
    (tmp_path / "accelerator.json").write_text(f'[{{"name": "A", "why": "", "rows": {rows}}}]')
    with pytest.raises(ValueError, match="no results yet"):
        load_all(tmp_path)
    page = report.page({}, load_accelerator(tmp_path))
    assert "No accelerator" not in page
    assert "| A | loop | 2 ms | 1.2 x |  |" in page
