"""Malignant or not, with a Haiku network: the exact ROC and precision-recall curves.

python docs/examples/breast_cancer_roc.py
"""

import haiku as hk
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from _common import at_least, folder, split, verdict
from sklearn.datasets import load_breast_cancer

import solstice
from solstice.metrics import BinaryCurves

out = folder(__doc__)
x, y = load_breast_cancer(return_X_y=True)
train, test = split(x.astype(np.float32), y == 0, test=169)  # class 0 is malignant
mean, spread = train[0].mean(axis=0), train[0].std(axis=0)
train, test = (((x - mean) / spread, y) for x, y in (train, test))


def forward(x, train):
    x = jax.nn.relu(hk.Linear(32)(x))
    if train:
        x = hk.dropout(hk.next_rng_key(), 0.2, x)
    return hk.Linear(1)(x)


exp = solstice.BinaryClassificationExperiment(
    hk.transform(forward),
    optax.adamw(3e-3, weight_decay=0.1),
    class_weights=[1.0, 2.0],  # to miss a tumour is worse
    metrics=lambda logits, labels, mask, weights=None: BinaryCurves(
        logits, labels, mask=mask, weights=weights
    ),
)
exp = exp.train(train, batch_size=32, num_epochs=40)

curves = BinaryCurves(jnp.asarray(exp(test[0])), test[1])
false_positives, true_positives, _ = curves.roc_curve()
precision, recall, _ = curves.precision_recall_curve()
_, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
left.plot(false_positives, true_positives)
left.plot([0, 1], [0, 1], ":", color="grey")
left.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
right.plot(recall, precision)
right.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02), title="precision and recall")
plt.tight_layout()
plt.savefig(out / "breast_cancer_roc.png", dpi=120)
verdict(at_least("test ROC-AUC", exp.test(test, batch_size=64)["roc_auc"], 0.99))
