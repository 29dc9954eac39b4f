"""`nox -s bench_many_fits`: the memory of a process that trains and validates 300 times (Linux).

Each column is a new process. "shared" makes the model and the optimiser once; "new" makes them for
each fit, as a sweep may; "by hand" is a loop with a new `jax.jit` for each new model, without
Solstice: what JAX itself keeps.
"""

import argparse
import os
import subprocess
import sys

PROGRAM = """
import gc, sys
import equinox as eqx
import jax
import numpy as np
import optax
import solstice

kind, fits, every = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)
x = rng.normal(size=(128, 16)).astype(np.float32)
y = rng.integers(0, 4, 128).astype(np.int32)
batches = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 128, 32)]

def parts():
    model = eqx.nn.MLP(16, 4, 32, 1, key=jax.random.key(0))
    return model, optax.adam(1e-3)

def solstice_fit(model, optimizer, seed):
    experiment = solstice.ClassificationExperiment(model, optimizer, num_classes=4, seed=seed)
    solstice.Trainer([]).fit(experiment, batches, batches)

def hand_fit(model, optimizer, seed):
    params, static = eqx.partition(model, eqx.is_array)

    def loss_of(params, x, y):
        logits = jax.vmap(eqx.combine(params, static))(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(loss_of)(params, x, y)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    evaluate = jax.jit(loss_of)
    state = optimizer.init(params)
    for x, y in batches:
        params, state, loss = step(params, state, x, y)
    for x, y in batches:
        loss = evaluate(params, x, y)
    jax.block_until_ready(loss)

fit = hand_fit if kind == "by hand" else solstice_fit
shared = (solstice.compat.as_model(parts()[0]), parts()[1])
for count in range(fits + 1):
    if count % every == 0:
        gc.collect()
        with open("/proc/self/status") as lines:
            kilobytes = next(line.split()[1] for line in lines if line.startswith("VmRSS"))
        print(count, int(kilobytes) // 1024, flush=True)
    fit(*(shared if kind == "shared" else parts()), count)
"""

KINDS = ("shared", "new", "by hand")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fits", type=int, default=300)
    parser.add_argument("--every", type=int, default=20)
    options = parser.parse_args()
    found = {kind: measured(kind, options.fits, options.every) for kind in KINDS}
    print(f"{'fits':>6}" + "".join(f"{kind:>12}" for kind in KINDS))
    for count in found["new"]:
        print(f"{count:6}" + "".join(f"{found[kind][count]:9} MB" for kind in KINDS))


def measured(kind: str, fits: int, every: int) -> dict[int, int]:
    """Megabytes in memory, by the number of fits before."""
    command = [sys.executable, "-c", PROGRAM, kind, str(fits), str(every)]
    done = subprocess.run(command, env=os.environ, stdout=subprocess.PIPE, check=True, text=True)
    return dict(map(int, line.split()) for line in done.stdout.splitlines())


if __name__ == "__main__":
    main()
