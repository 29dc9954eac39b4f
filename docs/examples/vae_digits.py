"""A variational autoencoder of 8x8 digits: encoder in Haiku, decoder in Linen, and samples.

python docs/examples/vae_digits.py
"""

import flax.linen as nn
import haiku as hk
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from _common import folder, grid, split, verdict
from sklearn.datasets import load_digits

import solstice

LATENTS = 6

out = folder(__doc__)
images, labels = load_digits(return_X_y=True)
train, test = split((images / 16).astype(np.float32), labels, test=297)

encoder = hk.transform(lambda x: hk.nets.MLP([128, 2 * LATENTS], activation=jax.nn.gelu)(x))
decoder = nn.Sequential([nn.Dense(128), nn.gelu, nn.Dense(128), nn.gelu, nn.Dense(64)])
exp = solstice.VAEExperiment(encoder, decoder, optax.adam(2e-3), LATENTS)
exp = exp.train(train, batch_size=50, num_epochs=80)  # pairs: the labels are not looked at

reconstructed = np.asarray(exp.predict_step(test[0][:40]))
samples = np.asarray(exp.sample(jax.random.key(0), 80))
_, axes = plt.subplots(1, 2, figsize=(11, 5))
pairs = np.stack([test[0][:40].reshape(4, 10, 64), reconstructed.reshape(4, 10, 64)], axis=1)
for axis, shown, title in [
    (axes[0], pairs.reshape(80, 8, 8), "digits, and below each its reconstruction"),
    (axes[1], samples.reshape(80, 8, 8), "samples"),
]:
    axis.imshow(grid(shown, 8), cmap="gray", vmin=0, vmax=1)
    axis.set(title=title, xticks=[], yticks=[])
plt.tight_layout()
plt.savefig(out / "vae_digits.png", dpi=120)

# What one pays for a digit, in nats, who knows of each pixel how bright it is on average.
mean = np.clip(train[0].mean(axis=0), 1e-3, 1 - 1e-3)
baseline = -(test[0] * np.log(mean) + (1 - test[0]) * np.log(1 - mean)).sum(axis=1).mean()
verdict("test loss, nats", exp.test(test, batch_size=99)["loss"], float(baseline), at_most=True)
