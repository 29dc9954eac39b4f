"""torch: a module or its `state_dict()` gives weights to Linen, and gets them back as tensors."""

import jax
import numpy as np
import pytest

import solstice

torch = pytest.importorskip("torch")
flax = pytest.importorskip("flax.linen")
pytestmark = pytest.mark.filterwarnings("default")  # torch warns of its own dependencies


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.bn = torch.nn.BatchNorm1d(8)

    def forward(self, x):
        x, _ = self.attn(x, x, x)
        return self.bn(x.mean(1))


class Linen(flax.Module):
    @flax.compact
    def __call__(self, x, train):
        x = flax.MultiHeadDotProductAttention(2)(x, x).mean(1)
        return flax.BatchNorm(not train, epsilon=1e-5)(x)


def test_a_module_gives_its_weights_to_linen_and_gets_them_back():
    net, x = Attention(), np.random.default_rng(0).normal(size=(4, 5, 8)).astype(np.float32)
    net(torch.from_numpy(x))  # so that the averages of BatchNorm move
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(x)).numpy()
    linen = Linen()
    variables = solstice.convert(net, linen.init(jax.random.key(0), x, False), layout="torch")
    np.testing.assert_allclose(linen.apply(variables, x, False), expected, atol=1e-5)

    other = Attention()
    other.load_state_dict(solstice.convert(variables, other.state_dict(), layout="flax"))
    with torch.no_grad():
        found = other.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_tensors_keep_their_dtype(dtype):
    kind = getattr(torch, dtype)
    state = torch.nn.Linear(3, 2).to(kind).state_dict()
    params = {"Dense_0": {"kernel": np.zeros((3, 2), np.float32), "bias": np.zeros(2, np.float32)}}
    new = solstice.convert(state, like=params, layout="torch")
    np.testing.assert_array_equal(new["Dense_0"]["kernel"], state["weight"].float().numpy().T)
    back = solstice.convert(new, like=torch.nn.Linear(3, 2).to(kind).state_dict(), layout="flax")
    assert back["weight"].dtype == kind
    if dtype != "float64":
        assert torch.equal(back["weight"], state["weight"])
