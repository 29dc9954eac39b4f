"""Digits of 8x8 pixels: 8 learning rates with 8 seeds each, as one program and one figure.

python docs/examples/population_digits.py
"""

import flax.linen as nn
import matplotlib.pyplot as plt
import numpy as np
import optax
from _common import at_least, folder, split, verdict
from sklearn.datasets import load_digits

import solstice
from solstice.callbacks import ProgressBar

out = folder(__doc__)
images, labels = load_digits(return_X_y=True)
train, test = split((images / 16).astype(np.float32), labels.astype(np.int32), test=297)
train, val = split(*train, test=300)
train_ds = solstice.data.batches(train, 60, shuffle=True, seed=0)
val_ds, test_ds = (solstice.data.batches(pair, 99) for pair in (val, test))

net = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(10)])
rates, seeds = np.geomspace(1e-4, 0.3, 8), np.arange(8)


def make(rate, seed):
    return solstice.ClassificationExperiment(net, optax.adam(rate), num_classes=10, seed=seed)


pop = solstice.Population(make, **solstice.grid(rate=rates, seed=seeds))
trainer = solstice.Trainer([ProgressBar(only=["accuracy"])])
pop = trainer.fit(pop, train_ds, val_ds, num_epochs=20)

# A rate is chosen by its mean over the seeds, because the best single run is also the luckiest.
best = trainer.history.best("val/accuracy")
last = trainer.history.series("val/accuracy")[1][-1].reshape(len(rates), len(seeds))
chosen = int(last.mean(axis=1).argmax())
tested = trainer.test(pop, test_ds)["accuracy"].reshape(last.shape)[chosen]
of_best = trainer.test(pop[best["member"]], test_ds, confidence=0.95)
accuracy, low, high = (of_best[name] for name in ("accuracy", "accuracy_low", "accuracy_high"))

plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
figure, (curves, choice) = plt.subplots(1, 2, figsize=(7.2, 2.9), layout="constrained")
colours = plt.get_cmap("viridis")(np.linspace(0, 0.92, len(rates)))
steps, values = trainer.history.series("val/accuracy")
epochs = np.arange(1, len(steps) + 1)
for member, line in enumerate(np.transpose(values)):
    curves.plot(epochs, line, color=colours[member // len(seeds)], alpha=0.35, linewidth=0.7)
line = np.transpose(values)[best["member"]]
curves.plot(epochs, line, color="black", linewidth=1.6)
curves.plot(best["epoch"] + 1, best["accuracy"], "*", color="black", markersize=11)
curves.annotate(
    f"{best['accuracy']:.3f}",
    (best["epoch"] + 1, best["accuracy"]),
    xytext=(0, 7),
    textcoords="offset points",
    ha="center",
)
curves.set(xlabel="epoch", ylabel="validation accuracy", ylim=(0, 1.06), xlim=(1, len(steps)))
curves.set_xticks([1, 5, 10, 15, 20])

errors = 1 - last  # on a log scale, where the interval of a good model can be seen
mean, spread = errors.mean(axis=1), errors.std(axis=1, ddof=1)
choice.scatter(
    np.repeat(rates, len(seeds)), errors, 12, np.repeat(colours, len(seeds), 0), alpha=0.6
)
choice.plot(rates, mean, color="0.35", linewidth=1, zorder=0, label="validation, mean ± std")
choice.fill_between(rates, mean - spread, mean + spread, color="0.35", alpha=0.12, linewidth=0)
choice.errorbar(
    rates[best["member"] // len(seeds)],
    1 - accuracy,
    yerr=[[high - accuracy], [accuracy - low]],
    fmt="*",
    color="black",
    markersize=9,
    capsize=3,
    label=f"test of the best, {1 - accuracy:.3f} ({1 - high:.3f} to {1 - low:.3f})",
)
choice.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="error", ylim=(2e-3, 8))
choice.legend(loc="upper center", frameon=False)
for letter, axes in zip("ab", (curves, choice), strict=True):
    axes.set_title(letter, loc="left", fontweight="bold")
figure.savefig(out / "population_digits.png", dpi=200)

what = f"mean test accuracy of {len(seeds)} seeds at the rate {rates[chosen]:.2g}"
verdict(
    at_least(what, tested.mean(), 0.95),
    at_least("lower bound of the test accuracy of the best member", low, 0.93),
    at_least("mean validation error at the largest rate", mean[-1], mean[chosen] + 0.1),
)
