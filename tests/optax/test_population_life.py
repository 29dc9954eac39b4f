"""Members of a population that stop early, are removed, or copy the best."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peers
import pytest

import solstice
from solstice import Evolve, Population, checkpoint
from solstice.callbacks import Checkpoint, CompileMonitor, EarlyStopping
from solstice.population._ranking import best_first

pytest.importorskip("safetensors")


class Toy(solstice.Experiment):
    """Gradient steps towards the mean of the batches; the optimiser is rebuilt from a rate."""

    w: jax.Array
    steps: jax.Array
    opt_state: Any
    optimizer: Any

    def _loss(self, w: jax.Array, batch: Any) -> jax.Array:
        return jnp.mean((w - batch.mean()) ** 2)

    def train_step(self, batch: Any) -> Any:
        loss, grad = jax.value_and_grad(self._loss)(self.w, batch)
        updates, opt_state = self.optimizer.update(grad, self.opt_state, self.w)
        w, steps = optax.apply_updates(self.w, updates), self.steps + 1
        return solstice.replace(self, w=w, opt_state=opt_state, steps=steps), {"loss": loss}

    def eval_step(self, batch: Any) -> Any:
        return self, {"loss": self._loss(self.w, batch), "steps": self.steps.astype(jnp.float32)}


def make(rate: Any, start: Any) -> Toy:
    optimizer = optax.sgd(rate, momentum=0.5)
    w = jnp.full(3, start, jnp.float32)
    return Toy(w, jnp.zeros((), jnp.int32), optimizer.init(w), optimizer)


TRAIN = [np.full(4, 1 + 0.1 * i, np.float32) for i in range(5)]
VAL = [np.full(4, 1.2, np.float32)]
STEPS = len(TRAIN)
RATES = np.array([0.08, 0.3, 0.1, 0.9, 0.12, 0.2, 0.07, 0.5], np.float32)


def population(size: int = 8, **options: Any) -> Population:
    return Population(make, rate=RATES[:size], start=np.linspace(3, 4, size), **options)


def fit(pop: Population, num_epochs: int, *callbacks: Any, val: Any = VAL, **options: Any) -> Any:
    trainer = solstice.Trainer([*callbacks])
    return trainer.fit(pop, TRAIN, val, num_epochs=num_epochs, **options), trainer


def alone(index: int, size: int = 8) -> Toy:
    return make(RATES[index], np.linspace(3, 4, size, dtype=np.float32)[index])


def same_arrays(one: Any, other: Any, atol: float = 1e-6) -> None:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    for mine, yours in pairs:
        if isinstance(mine, jax.Array):
            np.testing.assert_allclose(mine, yours, rtol=0, atol=atol)


# Early stopping


def test_a_stopped_member_is_a_run_that_early_stopping_ended():
    pop, trainer = fit(population(patience=2), 40)
    for index in range(8):
        solo = solstice.Trainer([EarlyStopping("val/loss", patience=2)])
        exp = solo.fit(alone(index), TRAIN, VAL, num_epochs=40)
        same_arrays(pop[index], exp)
    ended = {int(pop[index].steps) for index in range(8)}
    assert len(ended) > 2  # at several epochs
    assert max(ended) < 40 * STEPS  # all have stopped, so the run has ended
    assert trainer.history.rows[-1]["step"] == max(ended)
    assert pop.is_finished


def test_nan_is_never_an_improvement():
    pop, _ = fit(Population(make, rate=[np.nan, 0.1], start=2.0, patience=3), 5)
    assert [int(pop[index].steps) for index in (0, 1)] == [3 * STEPS, 5 * STEPS]
    assert pop.is_active is not None
    assert pop.is_active.tolist() == [False, True]


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({"monitor": "val/loss"}, "min"),
        ({"monitor": "val/steps"}, "max"),
        ({"monitor": "val/steps", "mode": "min"}, "min"),
        ({}, "min"),
    ],
)
def test_the_direction_is_that_of_early_stopping(options: Any, mode: str):
    pop = population(patience=1, **options)
    assert pop.life is not None
    assert pop.life.monitor.mode == mode
    assert pop.monitor == options.get("monitor", "val/loss")
    if "steps" in pop.monitor:
        pop, _ = fit(pop, 4)
        assert int(pop[0].steps) == (4 if mode == "max" else 2) * STEPS


def test_no_mask_without_patience():
    """A selection in each step costs time, so only a population that may stop members has one."""
    assert population(halving=(1, 0.5)).is_active is None
    assert population(patience=1).is_active is not None


# Successive halving


class Counts(solstice.Callback):
    """Counts steps of members, and looks for arrays of removed ones."""

    needs = ("experiment",)
    modes = ("train",)

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def on_step_end(self, record: solstice.Record) -> None:
        pop: Any = record.experiment
        self.sizes.append(len(pop))
        rest = pop.members, pop.hyperparameters, pop.ids, pop.life.best, pop.life.waited
        arrays = [x for x in jax.tree.leaves(rest) if isinstance(x, jax.Array)]
        assert {len(array) for array in arrays} == {len(pop)}


@pytest.mark.parametrize(
    ("halving", "sizes"),
    [
        ((2, 0.5), [8, 8, 4, 4, 2, 2, 1]),
        ((1, 3), [8, 3, 3, 3, 3, 3, 3]),
        ((3, 0.1), [8, 8, 8, 1, 1, 1, 1]),
        ((1, 0.7), [8, 5, 3, 2, 1, 1, 1]),
        ((4, 1), [8, 8, 8, 8, 1, 1, 1]),
    ],
)
def test_halving_spends_the_stated_steps_of_members(halving: Any, sizes: list[int]):
    counts = Counts()
    _, trainer = fit(population(halving=halving), 7, counts)
    assert counts.sizes == [size for size in sizes for _ in TRAIN]
    losses = np.array([row["loss"] for row in trainer.history.rows if row["mode"] == "val"])
    assert (~np.isnan(losses)).sum(1).tolist() == sizes


def test_the_best_stay_and_equal_their_runs_alone():
    pop, trainer = fit(population(halving=(2, 0.5)), 6)
    _, whole = fit(population(), 6)
    losses = np.array([row["loss"] for row in whole.history.rows if row["mode"] == "val"])
    left = np.arange(8)
    first, _ = fit(population(halving=(2, 0.5)), 2)
    assert first.ids.tolist() == sorted(np.argsort(losses[1])[:4])
    for epoch in (1, 3, 5):
        left = np.sort(left[np.argsort(losses[epoch][left], kind="stable")[: len(left) // 2]])
    assert pop.ids.tolist() == left.tolist()
    [index] = left
    exp = solstice.Trainer().fit(alone(index), TRAIN, VAL, num_epochs=6)
    same_arrays(pop[index], exp)
    np.testing.assert_array_equal(pop.hyperparameters["rate"], RATES[left])
    best = trainer.history.best("val/loss")
    assert best["member"] in range(8)
    gone = next(i for i in range(8) if i != index)
    with pytest.raises(IndexError, match=rf"pop\[{gone}\] is not there: 7 of 8 .* removed"):
        pop[gone]


def test_each_size_is_compiled_once():
    class Here(Toy):
        """Not compiled by another test."""

    def made(rate: Any) -> Here:
        toy = make(rate, 2.0)
        return Here(toy.w, toy.steps, toy.opt_state, toy.optimizer)

    monitor = CompileMonitor()
    fit(Population(made, rate=RATES, halving=(2, 0.5)), 9, monitor)
    names = [compilation.name for compilation in monitor.compilations]
    assert sorted(names) == ["Population.eval_step"] * 4 + ["Population.train_step"] * 4


def test_ties_and_nan():
    nan = np.nan
    assert best_first(np.array([1.0, nan, 2.0, 2.0, -np.inf, nan])).tolist() == [2, 3, 0, 4, 1, 5]
    pop, _ = fit(Population(make, rate=[nan, 0.1, 0.1, 0.1], start=2.0, halving=(1, 0.5)), 2)
    assert pop.ids.tolist() == [1]
    pop, _ = fit(Population(make, rate=[nan, nan], start=2.0, halving=(1, 0.5)), 1)
    assert pop.ids.tolist() == [0]


@pytest.mark.parametrize("patience", [2, 3])
def test_halving_with_patience(patience: int):
    pop, _ = fit(population(halving=(2, 0.5), patience=patience), 40)
    assert len(pop) < 8
    assert pop.is_finished


class Scaled(Toy):
    """With a Python number, of which the Trainer makes an array for all members."""

    scale: float = 0.5

    def _loss(self, w: jax.Array, batch: Any) -> jax.Array:
        return self.scale * super()._loss(w, batch)


@pytest.mark.parametrize("options", [{"halving": (1, 0.5)}, {"evolve": Evolve(1)}])
def test_a_number_of_all_members_stays(options: Any):
    def made(rate: Any) -> Scaled:
        toy = make(rate, 2.0)
        return Scaled(toy.w, toy.steps, toy.opt_state, toy.optimizer)

    pop, _ = fit(Population(made, rate=RATES[:4], **options), 2)
    assert float(pop.members.scale) == 0.5
    assert len(pop) == (1 if "halving" in options else 4)


# Population-based training


EVOLVE = Evolve(2, fraction=0.25, factors=(0.5, 2.0), only=["rate"], seed=3)


def evolving(**options: Any) -> Population:
    return population(evolve=options.pop("evolve", EVOLVE), **options)


def test_the_worst_copy_the_best_and_vary():
    before, trainer = fit(population(), 2)
    after, _ = fit(evolving(), 2)
    losses = trainer.history.rows[-1]["loss"]
    order = np.argsort(losses)
    best, rest, worst = order[:2], order[:-2], order[-2:]
    for index in rest:
        same_arrays(after[int(index)], before[int(index)], 0)
        assert after.hyperparameters["rate"][index] == RATES[index]
    for index in worst:
        w = np.asarray(after[int(index)].w)
        [source] = [i for i in best if (w == np.asarray(before[int(i)].w)).all()]
        same_arrays(after[int(index)], before[int(source)], 0)
        factor = after.hyperparameters["rate"][index] / RATES[source]
        assert float(factor) in (0.5, 2.0)
        assert after.hyperparameters["start"][index] == before.hyperparameters["start"][source]
    assert after.ids.tolist() == list(range(8))


def test_members_train_with_their_new_hyperparameters():
    two, _ = fit(evolving(), 2)
    three, _ = fit(evolving(), 3)
    for index in range(8):
        exp: Any = two[index]
        rate = two.hyperparameters["rate"][index]
        exp = solstice.replace(exp, optimizer=optax.sgd(rate, momentum=0.5))
        exp = solstice.Trainer().fit(exp, TRAIN, num_epochs=1)
        same_arrays(exp, three[index])
        assert int(exp.steps) == 3 * STEPS


def test_it_repeats_from_its_seed():
    def rates(seed: int) -> list[float]:
        pop, _ = fit(
            evolving(evolve=Evolve(1, factors=(0.7, 0.9, 1.1, 1.3), only=["rate"], seed=seed)), 6
        )
        return pop.hyperparameters["rate"].tolist()

    assert rates(0) == rates(0)
    assert rates(0) != rates(1)
    keys = [fit(evolving(evolve=Evolve(1, only=["rate"])), n)[0].life.key for n in (1, 2)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 2


def test_bounds_and_nan_members():
    bounds = {"rate": (0.0, 0.4), "start": (0, 9)}
    bounded = Evolve(1, factors=(3.0,), only=["rate"], bounds=bounds)
    pop, _ = fit(Population(make, rate=[np.nan, 0.2, 0.3], start=2.0, evolve=bounded), 3)
    assert not np.isnan(np.asarray(pop[0].w)).any()
    assert float(pop.hyperparameters["rate"].max()) == np.float32(0.4)
    pop, _ = fit(Population(make, rate=[np.nan, np.nan], start=2.0, evolve=bounded), 2)
    assert np.isnan(np.asarray(pop.hyperparameters["rate"])).all()  # there is none to copy


class Watches(solstice.Callback):
    """Sees that the arrays of stopped members stay, and counts those that are worse than others."""

    modes, phase = ("train",), solstice.Phase.SAVE

    def __init__(self) -> None:
        self.stopped: dict[int, Any] = {}

    def on_epoch_end(self, record: solstice.Record) -> None:
        pop: Any = record.experiment
        for index, before in self.stopped.items():
            same_arrays(pop[index], before, 0)
            assert not pop.is_active[index]
        self.stopped |= {int(i): pop[int(i)] for i in pop.ids if not pop.is_active[i]}


def test_a_stopped_member_is_not_replaced():
    watches = Watches()
    # The largest rate diverges, so it stops first, and is the worst from then on.
    pop = Population(
        make, rate=[0.1, 0.2, 0.12, 2.5], start=2.0, patience=2, evolve=Evolve(5, only=["rate"])
    )
    pop, _ = fit(pop, 6, watches)
    assert 3 in watches.stopped
    assert float(pop.hyperparameters["rate"][3]) == 2.5


# Resume


OPTIONS: dict[str, Any] = {
    "patience": {"patience": 2},
    "halving": {"halving": (2, 0.5)},
    "evolve": {"evolve": EVOLVE},
    "all": {"patience": 3, "halving": (3, 0.5), "evolve": EVOLVE, "monitor": "train/loss"},
}


class BoomError(Exception):
    pass


class Dies(solstice.Callback):
    modes = ("train",)

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, record: solstice.Record) -> None:
        if record.step == self.step:
            raise BoomError


@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_that_dies_resumes_to_the_same_bits(tmp_path: Path, name: str):
    def go(folder: str, *more: Any, **options: Any) -> Any:
        pop, trainer = fit(
            population(**OPTIONS[name]), 9, Checkpoint(tmp_path / folder), *more, **options
        )
        return pop, str(trainer.history.rows)

    whole, rows = go("a")
    for step in (11, 23, 33):  # the first after 2 epochs
        with pytest.raises(BoomError):
            go("b", Dies(step), resume="last", strict_resume=True)
    pop, again = go("b", resume="last", strict_resume=True)
    assert checkpoint.diff(pop, whole) == {}
    assert again == rows


PATHS = [str(Path(__file__).parent), str(Path(peers.__file__).parent)]

SCRIPT = """
import os, signal, sys
sys.path[:0] = {paths}
import test_population_life as life
import solstice
from solstice.callbacks import Checkpoint

class Dies(solstice.Callback):
    phase = solstice.Phase.SAVE
    def on_epoch_end(self, record):
        if record.mode == "train" and record.epoch == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

pop, _ = life.fit(
    life.population(**life.OPTIONS["all"]), 8, Checkpoint(sys.argv[1]), Dies(), resume="last"
)
solstice.checkpoint.save(sys.argv[1] + "/end", pop)
"""


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bits(tmp_path: Path):
    script = textwrap.dedent(SCRIPT).format(paths=PATHS)

    def go(folder: str, epoch: int) -> int:
        command = [sys.executable, "-c", script, str(tmp_path / folder), str(epoch)]
        return subprocess.run(command, env={**os.environ}, check=False).returncode

    assert go("a", 99) == 0
    assert [go("b", epoch) for epoch in (1, 4, 5)] == [-signal.SIGKILL] * 3
    assert go("b", 99) == 0
    assert checkpoint.diff(tmp_path / "a" / "end", tmp_path / "b" / "end") == {}


# Devices


SPREAD = """
connect()
sys.path[:0] = {paths}
import jax, numpy as np
import test_population_life as life

for name, options in life.OPTIONS.items():
    for sharding in ("members", "replicated"):
        trainer = solstice.Trainer(mesh="all", sharding=sharding)
        pop = life.population(**options).setup(life.TRAIN[0])
        with jax.transfer_guard("disallow" if count == 1 else "allow"):
            pop = trainer.fit(pop, life.TRAIN, life.VAL, num_epochs=7)
        loss = trainer.history.rows[-1]["loss"]
        found = distributed.gather((pop.ids, pop.hyperparameters["rate"], pop.members.w, loss))
        show(f"{{name}} {{sharding}}", [np.asarray(x).tolist() for x in found])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(1, 8), (2, 1), (2, 2)])
def test_members_on_several_devices_live_as_on_one(processes: int, devices: int):
    program = SPREAD.format(paths=PATHS)
    flags = f"--xla_force_host_platform_device_count={devices}"
    for ended in peers.run(program, processes, timeout=300, XLA_FLAGS=flags):
        assert ended.code == 0, ended.output[-2000:]
        for name, options in OPTIONS.items():
            pop, trainer = fit(population(**options), 7)
            loss = trainer.history.rows[-1]["loss"]
            for sharding in ("members", "replicated"):
                found = ended.shown[f"{name} {sharding}"]
                expected: Any = pop.ids, pop.hyperparameters["rate"], pop.members.w, loss
                for one, other in zip(found, expected, strict=True):
                    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


# Errors


def test_a_metric_that_does_not_exist_is_refused_before_the_first_step():
    class Never(solstice.Callback):
        def on_step_end(self, record: solstice.Record) -> None:
            raise BoomError

    with pytest.raises(KeyError, match=r"Population monitors 'val/los'.*val/loss, val/steps.*mean"):
        fit(population(patience=1, monitor="val/los"), 1, Never())
    with pytest.raises(ValueError, match="Population monitors 'val/loss' and there is no valid"):
        fit(population(patience=1), 1, Never(), val=None)


def test_a_run_without_a_value_in_each_epoch():
    """With validations at steps 7, 14, 21, the first epoch has none, and does not count."""
    trainer = solstice.Trainer(val_every_n_steps=7)
    pop = trainer.fit(population(halving=(2, 0.5)), TRAIN, VAL, num_epochs=3)
    assert len(pop) == 4
    assert pop.life is not None
    assert int(pop.life.epochs) == 2


def of_patience(rate: Any, patience: Any, mode: Any = 0.0) -> Toy:
    return make(rate, patience + mode)


def test_a_keyword_that_may_mean_either_is_refused():
    with pytest.raises(TypeError, match=r'write `Population\(make, \{"patience": \.\.\.\}\)`'):
        Population(of_patience, rate=RATES, patience=3)
    pop = Population(of_patience, {"patience": [1.0, 2.0]}, rate=0.1, patience=3)
    assert pop.hyperparameters["patience"].tolist() == [1.0, 2.0]
    assert pop.life is not None
    assert pop.life.patience == 3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"patience": 0}, "patience must be"),
        ({"patience": 1.5}, "patience must be"),
        ({"halving": 3}, r"halving must be \(every, keep\), such as `halving=\(3, 0.5\)`"),
        ({"halving": (0, 0.5)}, "1 or more"),
        ({"halving": (1, 1.0)}, "keep must be a part of the members between 0 and 1"),
        ({"halving": (1, 8)}, "a number of members from 1 to 7; it is 8"),
        ({"halving": (1, True)}, "it is True"),
        ({"monitor": "loss", "patience": 1}, "Write 'val/loss'"),
        ({"monitor": "val/loss"}, "has no effect on a Population without a rule"),
        ({"mode": "min"}, "has no effect"),
        ({"mode": "less", "patience": 1}, "mode must be"),
        ({"evolve": 3}, "evolve must be"),
        ({"evolve": Evolve(only=["rat"])}, "'rat', which is not a hyperparameter .*: rate, start"),
        ({"evolve": Evolve(bounds={"x": (0, 1)})}, "'x', which is not"),
    ],
)
def test_options_that_are_refused(options: Any, match: str):
    with pytest.raises((ValueError, TypeError), match=match):
        population(**options)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"every": 0}, r"Evolve\(every=\) must be"),
        ({"fraction": 0.6}, r"Evolve\(fraction=\) must be .* up to 0.5"),
        ({"factors": ()}, r"Evolve\(factors=\) must be positive"),
        ({"factors": (0.0,)}, "positive"),
        ({"factors": 2.0}, "positive"),
        ({"only": "rate"}, r'write `only=\("rate",\)`'),
        ({"bounds": {"rate": (2, 1)}}, "the smallest and the largest"),
        ({"bounds": {"rate": 3}}, "the smallest and the largest"),
        ({"seed": -1}, "seed"),
    ],
)
def test_arguments_of_evolve_that_are_refused(arguments: Any, match: str):
    with pytest.raises(ValueError, match=match):
        Evolve(**arguments)


def test_evolve_needs_hyperparameters_that_members_follow():
    members = [alone(0)] * 3
    with pytest.raises(ValueError, match="no floating-point hyperparameter"):
        Population(members, evolve=Evolve())
    with pytest.raises(ValueError, match="no floating-point hyperparameter"):
        Population(lambda start: make(0.1, start), start=[1, 2], evolve=Evolve())
    with pytest.raises(ValueError, match="needs two members"):
        population(1, evolve=Evolve())

    class Held(Toy):
        rate: jax.Array  # state, and not the hyperparameter

        def train_step(self, batch: Any) -> Any:
            return solstice.replace(self, w=self.w * self.rate), {"loss": self.rate}

    def held(rate: Any) -> Held:
        toy = make(0.1, 1.0)
        return Held(toy.w, toy.steps, toy.opt_state, toy.optimizer, jnp.asarray(rate))

    with pytest.raises(solstice.ExperimentError, match=r"varies 'rate'.*inject_hyperparams"):
        fit(Population(held, rate=RATES, evolve=Evolve()), 1)
    with pytest.raises(solstice.ExperimentError, match=r"'start'.*only=\['rate'\]"):
        fit(population(evolve=Evolve()), 1)

    optimizer = optax.sgd(0.1)

    def concrete(rate: Any) -> Toy:
        w = jnp.full(2, float(rate))
        return Toy(w, jnp.zeros((), jnp.int32), optimizer.init(w), optimizer)

    with pytest.raises(solstice.ExperimentError, match="would not follow"):
        fit(Population(concrete, rate=RATES, evolve=Evolve()), 1)


def test_members_with_an_epoch_step_are_refused():
    class Steps(Toy):
        def epoch_step(self, metrics: Any) -> Any:
            return self

    members = [Steps(toy.w, toy.steps, toy.opt_state, toy.optimizer) for toy in [alone(0)] * 2]
    with pytest.raises(solstice.ExperimentError, match="Steps has an `epoch_step`"):
        fit(Population(members), 1)


def test_a_list_of_members_may_stop_and_be_removed():
    optimizer = optax.sgd(0.1)
    members = [
        Toy(jnp.full(2, start), jnp.zeros((), jnp.int32), optimizer.init(jnp.zeros(2)), optimizer)
        for start in (5.0, 1.2, 3.0)
    ]
    pop, _ = fit(Population(members, halving=(1, 1), patience=2), 3)
    assert pop.ids.tolist() == [1]
    assert eqx.tree_equal(pop.members.w.shape, (1, 2))
