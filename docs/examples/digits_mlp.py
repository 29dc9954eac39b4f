"""Digits of 8x8 pixels with an NNX network, and its learning curves.

python docs/examples/digits_mlp.py
"""

import matplotlib.pyplot as plt
import numpy as np
import optax
from _common import at_least, folder, split, verdict
from flax import nnx
from sklearn.datasets import load_digits

import solstice
from solstice.callbacks import History, ProgressBar


class MLP(nnx.Module):
    def __init__(self, rngs):
        self.one = nnx.Linear(64, 128, rngs=rngs)
        self.two = nnx.Linear(128, 128, rngs=rngs)
        self.last = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.two(nnx.relu(self.one(x)))))


out = folder(__doc__)
images, labels = load_digits(return_X_y=True)
train, test = split((images / 16).astype(np.float32), labels, test=297)
train, val = split(*train, test=200)

epochs, batch_size = 40, 32
rate = optax.cosine_decay_schedule(3e-3, epochs * len(train[0]) // batch_size)
exp = solstice.ClassificationExperiment(
    MLP(nnx.Rngs(0)), optax.adamw(rate, weight_decay=0.01), label_smoothing=0.05
)
train_ds = solstice.data.batches(train, batch_size, shuffle=True, seed=0)
val_ds = solstice.data.batches(val, 100)
history = History()
exp = exp.train(train_ds, val_ds, num_epochs=epochs, callbacks=[history, ProgressBar()])

for mode, name in [("train", "training"), ("val", "validation")]:
    rows = [row for row in history.rows if row["mode"] == mode]
    epoch = [row["epoch"] + 1 for row in rows]
    plt.plot(epoch, [row["accuracy"] for row in rows], label=name)
plt.xlabel("epoch")
plt.ylabel("accuracy")
plt.ylim(0.9, 1.005)
plt.legend()
plt.savefig(out / "digits_mlp.png", dpi=120)
accuracy = exp.test(test, batch_size=99)["accuracy"]
verdict(at_least("test accuracy", accuracy, 0.98))
