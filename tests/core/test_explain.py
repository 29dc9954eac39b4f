"""`Trainer.explain` says how many steps a call runs, and why."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice.callbacks import Logging


class Sum(solstice.Experiment):
    total: Any

    def train_step(self, batch: Any) -> Any:
        return solstice.replace(self, total=self.total + batch.sum()), {"sum": batch.sum()}

    def eval_step(self, batch: Any) -> Any:
        return self, {}


class Convolution(Sum):
    def train_step(self, batch: Any) -> Any:
        out = jax.lax.conv(batch, jnp.ones((1, 1, 2, 2)), (1, 1), "VALID")
        return solstice.replace(self, total=self.total + out.sum()), {}


class Looks(solstice.Callback):
    every = 10
    needs = ("experiment",)

    def on_step_end(self, record: solstice.Record) -> None:
        pass


class Watches(solstice.Callback):
    def on_step_end(self, record: solstice.Record) -> None:
        pass


SMALL = [np.ones(4, np.float32)] * 3


def explained(
    capsys: Any, experiment: Any = None, data: Any = SMALL, callbacks: Any = (), **options: Any
) -> str:
    trainer = solstice.Trainer(callbacks, **options)
    trainer.fit(experiment or Sum(jnp.zeros(())), data)
    print(trainer.explain())
    return capsys.readouterr().out


def test_small_steps_of_few_bytes_run_many_a_call(capsys: Any):
    text = explained(capsys)
    assert "up to 512 steps a call" in text
    assert "donated: each call reuses the memory of its inputs" in text
    assert "compiled programs: 1" in text
    assert f"memory for batches: {2 * 512 * 16:,} bytes" in text


def test_small_steps_of_more_bytes_run_thirty_two_a_call(capsys: Any):
    data = [np.ones(8192, np.float32)] * 3
    text = explained(capsys, data=data)
    assert "up to 32 steps a call" in text
    assert f"memory for batches: {2 * 32 * 32768:,} bytes" in text


def test_a_convolution_on_the_cpu_runs_one_a_call(capsys: Any):
    data = [np.ones((2, 1, 4, 4), np.float32)] * 2
    text = explained(capsys, Convolution(jnp.zeros(())), data)
    assert "1 step a call, up to 8 calls at once: the step has a convolution" in text
    assert f"memory for batches: {2 * 8 * 128:,} bytes" in text


def test_large_batches_run_as_many_as_fit(capsys: Any):
    data = [np.ones(2**19, np.float32)] * 2  # 2 MiB each
    text = explained(capsys, data=data)
    assert "up to 3 steps a call: a batch and its outputs have 2,097,156 bytes" in text


def test_what_a_step_returns_counts_as_well(capsys: Any):
    class Wide(Sum):
        def predict_step(self, batch: Any) -> Any:
            return jnp.ones((2**20,)) * batch.sum()

    trainer = solstice.Trainer()
    assert len(list(trainer.predict(Wide(jnp.zeros(())), SMALL))) == 3
    print(trainer.explain())
    expected = f"up to 1 steps a call: a batch and its outputs have {4 * 2**20 + 16:,} bytes"
    assert expected in capsys.readouterr().out


def test_steps_of_many_operations_run_as_many_as_take_a_moment(capsys: Any):
    class Product(Sum):
        def train_step(self, batch: Any) -> Any:
            product, _ = jax.lax.scan(lambda c, _: (c @ c, None), batch, length=8)
            return solstice.replace(self, total=self.total + product.sum()), {}

    data = [np.ones((512, 512), np.float32)]
    text = explained(capsys, Product(jnp.zeros(())), data)
    assert 8 * 2 * 512**3 == 2_147_483_648
    assert "up to 3 steps a call: a step has about 2,147,483,6" in text


@pytest.mark.parametrize(
    ("data", "how"),
    [
        (SMALL, "exactly, at once"),
        (lambda: iter(SMALL), "exactly if it gives the same batches again"),
        (iter(SMALL), "exactly if it gives the same batches again"),
    ],
    ids=["list", "function", "iterator"],
)
def test_how_a_run_could_go_on_is_said(capsys: Any, data: Any, how: str):
    assert f"train_ds can be continued within an epoch {how}" in explained(capsys, data=data)


def test_what_ends_a_call_is_named(capsys: Any):
    text = explained(capsys, callbacks=[Looks(), Logging(print, every=4)])
    assert "a call ends at every 10 steps: Looks" in text
    assert "a call ends at every 4 steps: Logging" in text
    assert "longest call: 4 steps" in text


def test_what_keeps_memory_from_being_reused_is_named(capsys: Any):
    assert "not donated: Watches may stop" in explained(capsys, callbacks=[Watches()])


def test_a_choice_of_the_users_is_said(capsys: Any):
    assert "up to 7 steps a call: set by steps_per_call" in explained(capsys, steps_per_call=7)


def test_before_a_run_there_is_nothing_to_explain():
    with pytest.raises(AttributeError, match="before its first run"):
        solstice.Trainer().explain()
