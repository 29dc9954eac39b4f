"""A variational autoencoder of 8x8 digits: encoder in Haiku, decoder in Linen, and samples.

python docs/examples/vae_digits.py
"""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from _common import Lines, at_most, folder, grid, split, verdict
from sklearn.datasets import load_digits

import solstice

LATENTS = 6


def encode(x):
    return hk.nets.MLP([256, 2 * LATENTS], activation=jax.nn.gelu)(x)


def nats(x, brightness):
    """What one pays for a digit, on average, who takes each pixel to be so bright."""
    p = np.clip(brightness, 1e-3, 1 - 1e-3)
    return float(-(x * np.log(p) + (1 - x) * np.log(1 - p)).sum(axis=1).mean())


out = folder(__doc__)
images, labels = load_digits(return_X_y=True)
train, test = split((images / 16).astype(np.float32), labels, test=297)

epochs, batch_size = 150, 50
rate = optax.cosine_decay_schedule(2e-3, epochs * len(train[0]) // batch_size)
decoder = nn.Sequential([nn.Dense(256), nn.gelu, nn.Dense(256), nn.gelu, nn.Dense(64)])
exp = solstice.VAEExperiment(hk.transform(encode), decoder, optax.adam(rate), LATENTS)
# The batches are pairs, whose labels are not looked at.
exp = exp.train(train, batch_size=batch_size, num_epochs=epochs, callbacks=[Lines(25)])

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

# The test loss decodes the means of the latents. Drawn ones, as in training, make it a bound on
# what a digit costs, which the mean digit's cost can be held against fairly.
measured = exp.test(test, batch_size=99)
mean, log_variance = exp.encode(test[0])
noise = jax.random.normal(jax.random.key(1), mean.shape)
drawn = np.asarray(exp.decode(mean + jnp.exp(log_variance / 2) * noise))
bound = nats(test[0], drawn) + measured["divergence"]
mean_digit = nats(test[0], train[0].mean(axis=0))
verdict(
    at_most("test loss, nats", measured["loss"], mean_digit),
    at_most("the same with latents drawn", bound, mean_digit),
)
