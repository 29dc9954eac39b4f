"""How a disease goes on, with an Equinox network, beside scikit-learn's ridge regression.

python docs/examples/diabetes_regression.py
"""

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from _common import at_least, folder, split, verdict
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge

import solstice
from solstice import compat

out = folder(__doc__)
x, y = load_diabetes(return_X_y=True)
train, test = split(x, y, test=110)

x_mean, x_spread = train[0].mean(axis=0), train[0].std(axis=0)
y_mean, y_spread = train[1].mean(), train[1].std()
train, test = (
    (((x - x_mean) / x_spread).astype(np.float32), ((y - y_mean) / y_spread).astype(np.float32))
    for x, y in (train, test)
)
ridge = Ridge().fit(*train).score(*test)

net = eqx.nn.MLP(10, "scalar", 16, 1, key=jax.random.key(0))
exp = solstice.RegressionExperiment(
    net, compat.ema(optax.adamw(2e-3, weight_decay=1.0), 0.99), loss=optax.huber_loss
)
exp = exp.train(train, batch_size=32, num_epochs=60)

plt.scatter(test[1] * y_spread + y_mean, np.asarray(exp(test[0])) * y_spread + y_mean, s=12)
ends = [test[1].min() * y_spread + y_mean, test[1].max() * y_spread + y_mean]
plt.plot(ends, ends, ":", color="grey")
plt.xlabel("true")
plt.ylabel("predicted")
plt.savefig(out / "diabetes_regression.png", dpi=120)
print(f"R2 of Ridge on the same split: {ridge:.4f}")
verdict(at_least("test R2", exp.test(test, batch_size=110)["r2"], ridge - 0.02))
