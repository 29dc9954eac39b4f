"""A language model of bytes, on the help texts of Python, beside gzip.

python docs/examples/characters.py
"""

import gzip
from pydoc_data.topics import topics

import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from _common import at_most, folder, verdict

import solstice
from solstice import compat
from solstice.callbacks import History, ProgressBar
from solstice.data import Masked, batches

LENGTH, WIDTH = 128, 192


class GRU(nn.Module):
    """Reads byte after byte, and says which comes next."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(256, 64)(tokens)
        x = nn.RNN(nn.GRUCell(WIDTH))(x)
        return nn.Dense(256)(x)


def windows(text: bytes) -> Masked:
    """Texts of LENGTH + 1 bytes that overlap by one, so that each byte but the first is a target
    exactly once; the last is filled up, and what fills it is masked."""
    data = np.frombuffer(text, np.uint8).astype(np.int32)
    count = -(-(len(data) - 1) // LENGTH)
    padded = np.zeros(count * LENGTH + 1, np.int32)
    padded[: len(data)] = data
    rows = np.arange(count)[:, None] * LENGTH + np.arange(LENGTH + 1)
    return Masked(padded[rows], rows < len(data))


out = folder(__doc__)
text = "\n".join(topics[name] for name in sorted(topics)).encode()
cut = len(text) * 9 // 10
training, held_out = text[:cut], text[cut:]
packed = 8 * len(gzip.compress(held_out, 9)) / len(held_out)

epochs, batch_size = 6, 32
train_ds = batches(windows(training), batch_size, shuffle=True)
# Begun with the byte before it, so that its first byte is a target too.
test_ds = batches(windows(text[cut - 1 :]), batch_size)
rate = optax.cosine_onecycle_schedule(epochs * len(train_ds), 8e-3)
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
exp = solstice.LanguageModelExperiment(
    GRU(), compat.ema(optimizer, 0.98), 256, token_bytes=np.ones(256, np.int32)
)
history = History()
exp = exp.train(train_ds, test_ds, num_epochs=epochs, callbacks=[history, ProgressBar()])

prompt = np.frombuffer(b"The with statement", np.uint8)[None].astype(np.int32)
written = exp.generate(prompt, 200, key=jax.random.key(0), temperature=0.7)
print(bytes(np.asarray(written[0], np.uint8)).decode(errors="replace"))

curve = [row["bits_per_byte"] for row in history.rows if row["mode"] == "val"]
plt.plot(range(1, epochs + 1), curve, label="this model, held-out text")
plt.axhline(packed, color="grey", linestyle=":", label="gzip -9")
plt.xlabel("epoch")
plt.ylabel("bits per byte")
plt.legend()
plt.savefig(out / "characters.png", dpi=120)
found = exp.test(test_ds)
assert found["num_tokens"] == len(held_out)
verdict(at_most("bits per byte", found["bits_per_byte"], packed))
