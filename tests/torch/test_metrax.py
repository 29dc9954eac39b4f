"""Metrics of metrax in a run, against torchmetrics."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solstice
from solstice.metrics import MetricsCollection, from_metrax

torch = pytest.importorskip("torch")
tm = pytest.importorskip("torchmetrics.functional")
metrax = pytest.importorskip("metrax")
pytestmark = pytest.mark.filterwarnings("default")  # torch warns of its own dependencies

RNG = np.random.default_rng(0)
IMAGES = RNG.random((10, 16, 16, 3), np.float32)
NOISY = np.clip(IMAGES + RNG.normal(0, 0.1, IMAGES.shape), 0, 1).astype(np.float32)


@pytest.fixture(autouse=True)
def promotion():
    """metrax mixes dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Denoise(solstice.Experiment):
    steps: Any

    def train_step(self, batch):
        raise NotImplementedError

    def eval_step(self, batch):
        images, noisy = batch
        return self, MetricsCollection(
            ssim=from_metrax(metrax.SSIM.from_model_output(noisy, images, max_val=1.0)),
            psnr=from_metrax(metrax.PSNR.from_model_output(noisy, images, max_val=1.0)),
            error=from_metrax(metrax.MSE.from_model_output(noisy.ravel(), images.ravel()), "mse"),
        )


def test_metrics_of_images_are_those_of_torchmetrics():
    data = solstice.data.batches((IMAGES, NOISY), 4)  # the last batch is smaller
    found = solstice.Trainer().test(Denoise(jnp.zeros(())), data)
    given = [torch.as_tensor(x.transpose(0, 3, 1, 2)) for x in (NOISY, IMAGES)]
    ssim = tm.structural_similarity_index_measure(*given, data_range=1.0)
    whole = metrax.SSIM.from_model_output(NOISY, IMAGES, max_val=1.0).compute()
    each = [tm.peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in zip(*given, strict=True)]
    assert found["ssim"] == pytest.approx(float(whole), rel=1e-5)
    assert found["ssim"] == pytest.approx(float(ssim), abs=0.01)  # which fills the border
    assert found["psnr"] == pytest.approx(float(np.mean(each)), rel=1e-5)
    assert found["error"] == pytest.approx(np.mean((NOISY - IMAGES) ** 2), rel=1e-5)


@pytest.mark.parametrize("name", ["Precision", "AUCROC", "AUCPR", "RSQUARED", "FBetaScore"])
def test_those_that_merge_are_taken_and_others_refused(name):
    scores, labels = RNG.random(20).astype(np.float32), (RNG.random(20) > 0.5) + 0
    made = [
        getattr(metrax, name).from_model_output(scores[at], labels[at])
        for at in (slice(8), slice(8, 20), slice(20))
    ]
    if name == "FBetaScore":
        with pytest.raises(TypeError, match="FBetaScore has no `merge`"):
            from_metrax(made[0])
        return
    one, other = map(from_metrax, made[:2])
    merged = one.empty().merge(one).merge(other).compute()[name.lower()]
    assert merged == pytest.approx(float(made[2].compute()), rel=1e-5)
