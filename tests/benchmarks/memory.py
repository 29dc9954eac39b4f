"""`nox -s bench_memory`: the peak memory of training with a state of 400 MB (Linux).

Each figure is of a new process: the peak of its resident memory above that before the state exists.
The state is parameters and Adam's moments. "by hand" is a jitted loop that donates its state; the
others are `Trainer.fit`. All train for 4 epochs, and after each validate, measure the norm of the
parameters, note the metrics and write a checkpoint.
"""

import argparse
import os
import subprocess
import sys

PROGRAM = """
import shutil, sys, tempfile
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np, optax
import solstice
from solstice.callbacks import Checkpoint, NormMonitor

kind, size, arrays = sys.argv[1], float(sys.argv[2]) * 1e6, int(sys.argv[3])
EPOCHS, ROWS = 4, 8
optimizer = optax.adam(1e-3)

def loss_of(params, batch):
    x = batch
    for w in params:
        x = jnp.tanh(x @ w)
    return (x**2).mean()

class Plain(solstice.Experiment):
    params: list
    opt_state: object

    def train_step(self, batch):
        loss, grads = jax.value_and_grad(loss_of)(self.params, batch)
        updates, opt_state = optimizer.update(grads, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        return solstice.replace(self, params=params, opt_state=opt_state), {"loss": loss}

    def eval_step(self, batch):
        return self, {"loss": loss_of(self.params, batch)}

def state_of(size):
    width = int((size / 3 / 4 / arrays) ** 0.5)
    params = [jax.random.normal(jax.random.key(i), (width, width)) / 30 for i in range(arrays)]
    rows = np.random.default_rng(0).normal(size=(6, ROWS, width)).astype(np.float32)
    return (params, optimizer.init(params)), list(rows[:4]), list(rows[4:])

def by_hand(state, train, val, folder):
    @jax.jit
    def evaluate(params, batch):
        return loss_of(params, batch)

    @jax.jit
    def norm_of(params):
        return jnp.sqrt(sum((w**2).sum() for w in params))

    def step(state, batch):
        loss, grads = jax.value_and_grad(loss_of)(state[0], batch)
        updates, opt_state = optimizer.update(grads, state[1], state[0])
        return (optax.apply_updates(state[0], updates), opt_state), loss

    step, history = jax.jit(step, donate_argnums=0), []
    for epoch in range(EPOCHS):
        for batch in train:
            state, loss = step(state, batch)
        losses = [evaluate(state[0], batch) for batch in val]
        history.append((float(loss), float(norm_of(state[0])), [float(x) for x in losses]))
        for index, leaf in enumerate(jax.tree.leaves(state)):
            np.save(folder / str(index), leaf)
    return state

def by_fit(state, train, val, folder):
    experiment = Plain(*state)
    del state[:]
    callbacks = [NormMonitor(), solstice.History(), Checkpoint(folder, keep=1)]
    trainer, donate = solstice.Trainer(callbacks), kind == "fit(donate=True)"
    if donate:
        return trainer.fit(experiment, train, val, num_epochs=EPOCHS, donate=True)
    trained = trainer.fit(experiment, train, val, num_epochs=EPOCHS)
    assert not experiment.params[0].is_deleted()
    return trained

def run(size):
    # Beside the script: a folder in memory would count.
    folder = Path(tempfile.mkdtemp(dir=sys.argv[4]))
    state, train, val = state_of(size)
    try:
        if kind == "by hand":
            jax.block_until_ready(by_hand(state, train, val, folder))
        else:
            state = list(state)
            jax.block_until_ready(by_fit(state, train, val, folder))
    finally:
        shutil.rmtree(folder)

def memory(name):
    with open("/proc/self/status") as lines:
        return int(next(line.split()[1] for line in lines if line.startswith(name))) / 1e3

run(size / 400)  # what programs and imports take is not the state's
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins here
base = memory("VmRSS")
run(size)
print(memory("VmHWM") - base)
"""

KINDS = ("by hand", "fit(donate=True)", "fit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=400, help="of the whole state")
    parser.add_argument("--arrays", type=int, nargs="+", default=[24, 1], help="of parameters")
    parser.add_argument("--folder", default=".", help="where checkpoints are written")
    options = parser.parse_args()
    print(
        f"a state of {options.megabytes:.0f} MB: the peak in MB, and over that of the loop by hand"
    )
    print(f"{'':24}" + "".join(f"{kind:>24}" for kind in KINDS))
    for arrays in options.arrays:
        peaks = [peak(kind, options.megabytes, arrays, options.folder) for kind in KINDS]
        cells = (f"{x:16.0f} ({x / peaks[0]:4.2f})" for x in peaks)
        print(f"{f'{3 * arrays} arrays':24}" + " ".join(cells), flush=True)


def peak(kind: str, megabytes: float, arrays: int, folder: str) -> float:
    """The peak in MB above the memory before the state."""
    command = [sys.executable, "-c", PROGRAM, kind, str(megabytes), str(arrays), folder]
    done = subprocess.run(command, env=os.environ, stdout=subprocess.PIPE, check=True, text=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
