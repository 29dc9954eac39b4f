"""Metrics of metrax as Metrics; tests/torch has those of metrax itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu_like import Both, Brightness, NoMerge

import solstice
from solstice.metrics import Mapped, Mean, MetricsCollection, from_metrax
from solstice.testing import MetricsConformance

IMAGES = np.random.default_rng(0).random((10, 2, 2), np.float32)


def brightness(images, mask=None, **options):
    return from_metrax(Brightness.from_model_output(images, mask, **options))


class TestAdapted(MetricsConformance):
    num_cases = 5
    unsupported = {"test_many_batches_do_not_overflow": "its counts are int32"}

    def examples(self, rng, size):
        return rng.random((size, 2, 2), np.float32)

    def build(self, examples, mask=None):
        return brightness(examples, mask)

    def reference(self, examples):
        return {"brightness": examples.mean()}


def test_it_merges_over_a_run_and_by_members():
    class Pixels(solstice.Experiment):
        steps: jax.Array

        def train_step(self, batch):
            raise NotImplementedError

        def eval_step(self, batch):
            return self, MetricsCollection(mean=Mean(batch), light=brightness(batch, scale=2.0))

    found = solstice.Trainer().test(Pixels(jnp.zeros(())), solstice.data.batches(IMAGES, 4))
    assert found["light"] == pytest.approx(found["mean"] / 2)
    each = Mapped(jax.vmap(lambda scale: brightness(scale * IMAGES))(jnp.arange(3.0)))
    values = each.merge(each).compute()["brightness"]
    np.testing.assert_allclose(values, np.arange(3) * IMAGES.mean(), rtol=1e-6)


def test_values_have_the_name_given_or_their_own():
    metric = Brightness.from_model_output(IMAGES)
    assert set(from_metrax(metric).compute()) == {"brightness"}
    assert set(from_metrax(metric, "light").compute()) == {"light"}
    both = from_metrax(Both.from_model_output(jnp.ones(4)))
    assert both.merge(both.empty()).compute() == {"total": 4, "half": 2}


def test_what_cannot_merge_is_refused():
    with pytest.raises(TypeError, match=r"NoMerge has no `merge`.*solstice\.metrics\.Collect"):
        from_metrax(NoMerge.from_model_output(jnp.ones(3)))
    with pytest.raises(
        TypeError, match=r"such as `metrax\.SSIM\.from_model_output\(.*it is <class"
    ):
        from_metrax(Brightness)
    one = brightness(IMAGES)
    for other in (brightness(IMAGES, scale=2.0), Mean(IMAGES), from_metrax(one.metric, "light")):
        with pytest.raises(ValueError, match=r"cannot merge metrics of .*Brightness.*make both"):
            one.merge(other)
