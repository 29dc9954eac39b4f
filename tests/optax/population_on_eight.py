"""Populations on a mesh of eight devices. `test_population.py` runs these tests."""

import re
from typing import Any

import jax
import numpy as np
import pytest
from populations import column, line_data, lines

import solstice
from solstice import ShardingError
from solstice._engine import _steps

COLLECTIVES = "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|send|recv"


@pytest.mark.parametrize("on_device", [False, True])
def test_members_are_spread_without_communication(monkeypatch: pytest.MonkeyPatch, on_device: bool):
    data = line_data(shuffle=True, seed=0, on_device=on_device)
    one, mesh = solstice.Trainer(), solstice.Trainer(mesh="all", sharding="members")
    alone = one.fit(lines(16), data, data, num_epochs=3)
    texts = programs(monkeypatch)
    pop = mesh.fit(lines(16), data, data, num_epochs=3)
    assert len(texts) >= 2  # a training, and a validation
    assert [re.findall(rf"\b({COLLECTIVES})\b", text) for text in texts] == [[] for _ in texts]
    assert all("f32[2,4]" in text for text in texts)  # two members on each device
    assert {len(x.addressable_shards[0].data) for x in (pop.members.w, pop.ids)} == {2}
    np.testing.assert_allclose(alone.members.w, np.asarray(pop.members.w), rtol=0, atol=1e-6)
    for name in ("train/loss", "val/loss"):
        np.testing.assert_allclose(column(mesh, name), column(one, name), rtol=0, atol=1e-6)
    assert len(pop[3].w.devices()) == 1
    assert "8 ('data') devices; state on each: " in mesh.explain()
    found = [x["y"] for x in mesh.predict(pop, data)]
    assert {x.shape for x in found} == {(8, 16)}


def programs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The compiled text of each block that runs from now on."""
    texts: list[str] = []
    jit = jax.jit

    def jitted(function: Any, **options: Any) -> Any:
        made = jit(function, **options)

        def call(*arguments: Any) -> Any:
            texts.append(made.lower(*arguments).compile().as_text())
            return made(*arguments)

        return call if function.__name__ == "run" else made

    _steps.compiled.cache_clear()
    monkeypatch.setattr(_steps.jax, "jit", jitted)
    return texts


def test_a_number_of_members_that_the_devices_do_not_divide():
    trainer = solstice.Trainer(mesh="all", sharding="members")
    with pytest.warns(UserWarning, match="cannot divide 6 members.*Use 8 members"):
        pop = trainer.fit(lines(6), line_data())
    alone = solstice.Trainer().fit(lines(6), line_data())
    np.testing.assert_allclose(alone.members.w, np.asarray(pop.members.w), rtol=0, atol=1e-6)


def test_an_experiment_without_members_is_refused():
    trainer = solstice.Trainer(mesh="all", sharding="members")
    with pytest.raises(ShardingError, match=r'has no members; .* Write sharding="replicated"'):
        trainer.fit(lines(2)[0], line_data())


@pytest.mark.parametrize("sharding", ["replicated", "fsdp"])
def test_other_shardings_split_the_batches(sharding: str):
    trainer = solstice.Trainer(mesh="all", sharding=sharding)
    pop = trainer.fit(lines(), line_data())
    alone = solstice.Trainer().fit(lines(), line_data())
    np.testing.assert_allclose(alone.members.w, np.asarray(pop.members.w), rtol=0, atol=1e-6)


def test_a_look_before_the_run():
    pop = lines(16).setup(next(iter(line_data())))
    text = str(solstice.summary(pop, mesh="all", sharding="members"))
    assert re.search(r"all arrays: ([\d,]+) bytes, [\d,]+ bytes on each of 8 devices", text)
    plan = str(solstice.plan(pop, next(iter(line_data())), mesh="all", sharding="members"))
    assert "on each of 8 devices" in plan
