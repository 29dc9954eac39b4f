"""A generative adversarial network of 8x8 digits in Equinox, and its samples.

python docs/examples/gan_digits.py
"""

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from _common import Lines, at_least, at_most, folder, grid, split, verdict
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

import solstice
from solstice import compat

LATENTS = 16

out = folder(__doc__)
images, labels = load_digits(return_X_y=True)
train, _ = split((images / 16).astype(np.float32), labels, test=297)


def leaky(x):
    return jax.nn.leaky_relu(x, 0.2)


keys = jax.random.split(jax.random.key(0))
generator = eqx.nn.MLP(LATENTS, 64, 128, 2, final_activation=jax.nn.sigmoid, key=keys[0])
discriminator = eqx.nn.MLP(64, "scalar", 128, 2, activation=leaky, key=keys[1])
exp = solstice.GANExperiment(
    generator,
    discriminator,
    compat.ema(optax.adam(5e-4, b1=0.5), 0.995),
    LATENTS,
    discriminator_optimizer=optax.adamw(5e-4, b1=0.5, weight_decay=0.1),
)
exp = exp.train(train, batch_size=50, num_epochs=600, callbacks=[Lines(50)])

samples = np.asarray(exp.sample(jax.random.key(1), 1000))
plt.figure(figsize=(6, 5))
plt.imshow(grid(samples[:80].reshape(80, 8, 8), 8), cmap="gray", vmin=0, vmax=1)
plt.xticks([])
plt.yticks([])
plt.title("samples")
plt.savefig(out / "gan_digits.png", dpi=120)

# Which digits are they? A generator that has collapsed draws one or two of the ten, or always
# the same of each, so that its pixels vary less; and what is no digit is far from all of them.
read = KNeighborsClassifier(3).fit(*train).predict(samples)
shares = np.bincount(read, minlength=10) / len(read)
print(
    "shares of the digits:", " ".join(f"{digit}: {share:.2f}" for digit, share in enumerate(shares))
)
nearest = KNeighborsClassifier(1).fit(*train).kneighbors(samples)[0].mean()
among = KNeighborsClassifier(2).fit(*train).kneighbors(train[0])[0][:, 1].mean()
mean_gap = np.abs(samples.mean(axis=0) - train[0].mean(axis=0)).mean()
spread_gap = np.abs(samples.std(axis=0) - train[0].std(axis=0)).mean()
verdict(
    at_least("digits with a share of 2 % or more", (shares >= 0.02).sum(), 8),
    at_most("means of the pixels, away from those of digits", mean_gap, 0.03),
    at_most("spreads of the pixels, away from those of digits", spread_gap, 0.03),
    at_most("distance to the nearest digit, over that among digits", nearest / among, 1.25),
)
