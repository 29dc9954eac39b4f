"""`python saving.py`: what saving 500 MB costs a run, beside Orbax and Equinox.

An Experiment of 100 arrays, 500 MB together, is trained by steps that write them all. Columns: how
long the call that saves takes; by how much the loop is late at the end of the next step, which is
the call, the copy of what must not change meanwhile, and the writer's share of the machine; how
long a step takes; how long until all is on the disk. Each is the median of the rounds. Then the
time of a smaller run with a checkpoint every 200 steps, as a ratio to the same run without.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import solstice
from solstice.callbacks import Checkpoint
from solstice.testing import Sgd

LEAVES, BYTES = 100, 500_000_000
WIDTH = 768
STEPS, EVERY = 1000, 200


class Many(solstice.Experiment):
    """A step that reads and writes all its arrays."""

    arrays: list[jax.Array]

    def train_step(self, batch):
        scale = 1 - 1e-6 * batch.mean()
        arrays = [a * scale for a in self.arrays]
        return solstice.replace(self, arrays=arrays), {"last": arrays[-1][-1]}

    def eval_step(self, batch):
        return self, {}


def many():
    size = BYTES // LEAVES // 4
    return Many([jnp.full(size, index, jnp.float32) for index in range(LEAVES)])


def solstice_saver(folder):
    saves = Checkpoint(folder / "solstice", every=4, every_epochs=None)
    saves.on_fit_start(solstice.Record(mode="train"))
    return saves.on_step_end, lambda: saves.on_fit_end(solstice.Record(mode="train"))


def orbax_saver(folder):
    from orbax.checkpoint import v1 as ocp

    waiting = []

    def save(record):
        arrays = eqx.filter(record.snapshot.experiment, eqx.is_array)
        waiting.append(ocp.save_async(folder / "orbax", arrays))

    return save, lambda: waiting[0].result()


def equinox_saver(folder):
    def save(record):
        eqx.tree_serialise_leaves(folder / "equinox.eqx", record.snapshot.experiment)

    return save, lambda: None


def measure(make):
    """Seconds: of the call, by which the loop is late at the next step, of a step, until done."""
    with tempfile.TemporaryDirectory() as place:
        save, finish = make(Path(place))
        saw: dict[int, float] = {}
        kept = {}

        class Watch(solstice.Callback):
            phase = solstice.Phase.SAVE
            needs = ("metrics", "snapshot")

            def on_step_end(self, record):
                assert record.metrics["last"] > 0  # read back: the step is done
                saw[record.step] = time.perf_counter()
                if record.step == 4:
                    save(record)
                    kept["save"] = time.perf_counter() - saw[4]

        trainer = solstice.Trainer([Watch()], steps_per_call=1)
        trainer.fit(many(), [np.ones(2, np.float32)] * 8)
        finish()
        done = time.perf_counter() - saw[4]
        usual = statistics.median([saw[2] - saw[1], saw[3] - saw[2], saw[4] - saw[3]])
        return kept["save"], saw[5] - saw[4] - usual, usual, done


def throughput(rounds):
    """Seconds of a run with checkpoints over those of the same without, and its steps a second."""
    x = np.random.default_rng(0).normal(size=(64, WIDTH)).astype(np.float32)
    net = eqx.nn.MLP(WIDTH, 1, WIDTH, 2, key=jax.random.key(0))
    exp = solstice.RegressionExperiment(net, Sgd(1e-3), sample_input=x)
    data = [(x, x[:, 0])] * STEPS
    times = {False: [], True: []}
    for index in range(2 * rounds + 2):
        saves = index % 2 == 1
        with tempfile.TemporaryDirectory() as place:
            callbacks = [Checkpoint(Path(place) / "a", every=EVERY, every_epochs=None)]
            start = time.perf_counter()
            trained = solstice.Trainer(callbacks if saves else []).fit(exp, data)
            jax.block_until_ready(trained)
            if index >= 2:
                times[saves].append(time.perf_counter() - start)
    ratios = [w / o for w, o in zip(times[True], times[False], strict=True)]
    return statistics.median(ratios), STEPS / statistics.median(times[False])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    savers = {
        "solstice.callbacks.Checkpoint": solstice_saver,
        "Orbax, save_async": orbax_saver,
        "eqx.tree_serialise_leaves": equinox_saver,
    }
    found = {name: [] for name in savers}
    for index in range(rounds + 1):
        for name, make in savers.items():
            row = measure(make)
            if index:
                found[name].append(row)
    print(f"saving {BYTES / 1e6:.0f} MB in {LEAVES} arrays, medians of {rounds} rounds, ms")
    print(f"{'':32}{'the call':>12}{'loop late':>12}{'a step':>12}{'on disk':>12}")
    for name, rows in found.items():
        columns = (1e3 * statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name:32}" + "".join(f"{value:12.1f}" for value in columns))
    ratio, rate = throughput(rounds)
    print(f"a checkpoint every {EVERY} steps: {ratio:.3f} x the time without ({rate:,.0f} steps/s)")


if __name__ == "__main__":
    main()
