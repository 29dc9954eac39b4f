"""Weights of other frameworks: what a layer computes stays, and what is not clear is refused."""

import re
import sys
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.example_libraries import stax
from wheels import write_wheel

import solstice
from solstice import layouts
from solstice.compat import AdapterError, EquinoxModel, _claims
from solstice.testing import Sgd

RNG = np.random.default_rng(0)


def array(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def dense(i, o):
    return {"kernel": array(i, o), "bias": array(o)}


def linear(name, i, o):
    return {f"{name}.weight": array(o, i), f"{name}.bias": array(o)}


def moved(source, like, layout="torch", **options):
    return solstice.convert(source, like, layout, **options)


# Each kind of layer computes the same: the formula of torch's documentation beside that of Linen's.


def test_a_dense_layer():
    new = moved(torch := linear("fc", 3, 3), {"Dense_0": dense(3, 3)})["Dense_0"]
    x = array(2, 3)
    expected = x @ torch["fc.weight"].T + torch["fc.bias"]
    np.testing.assert_allclose(x @ new["kernel"] + new["bias"], expected, rtol=1e-6)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_convolution(dims):
    """Both kernels go through XLA's own convolution, which takes the names of axes."""
    torch = {"conv.weight": array(3, 3, *(2, 4, 5)[:dims]), "conv.bias": array(3)}
    like = {"Conv_0": {"kernel": array(*(2, 4, 5)[:dims], 3, 3), "bias": array(3)}}
    new = moved(torch, like)["Conv_0"]
    x = array(1, 3, *(6, 7, 8)[:dims])
    axes = "DHW"[-dims:]

    def convolve(kernel, order):
        numbers = (f"NC{axes}", order, f"NC{axes}")
        return jax.lax.conv_general_dilated(x, kernel, [1] * dims, "VALID", None, None, numbers)

    expected = convolve(torch["conv.weight"], f"OI{axes}")
    np.testing.assert_allclose(convolve(new["kernel"], f"{axes}IO"), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(new["bias"], torch["conv.bias"])
    back = moved({"Conv_0": new}, torch, "flax")
    np.testing.assert_array_equal(back["conv.weight"], torch["conv.weight"])


def test_an_embedding_and_a_norm():
    torch = {"emb.weight": array(5, 4), "ln.weight": array(4), "ln.bias": array(4)}
    like = {"Embed_0": {"embedding": array(5, 4)}}
    like["LayerNorm_0"] = {"scale": array(4), "bias": array(4)}
    new = moved(torch, like)
    np.testing.assert_array_equal(new["Embed_0"]["embedding"], torch["emb.weight"])
    np.testing.assert_array_equal(new["LayerNorm_0"]["scale"], torch["ln.weight"])
    np.testing.assert_array_equal(new["LayerNorm_0"]["bias"], torch["ln.bias"])


WIDTH, HEADS = 6, 2


def fused():
    return {
        "attn.in_proj_weight": array(3 * WIDTH, WIDTH),
        "attn.in_proj_bias": array(3 * WIDTH),
        **linear("attn.out_proj", WIDTH, WIDTH),
    }


def linen_attention():
    size = WIDTH // HEADS
    split = {"kernel": array(WIDTH, HEADS, size), "bias": array(HEADS, size)}
    out = {"kernel": array(HEADS, size, WIDTH), "bias": array(WIDTH)}
    return {"query": split, "key": split, "value": split, "out": out}


def test_an_attention_whose_projections_are_fused():
    torch, x = fused(), array(5, WIDTH)
    new = moved(torch, {"MultiHeadDotProductAttention_0": linen_attention()})
    new = new["MultiHeadDotProductAttention_0"]
    parts = np.split(x @ torch["attn.in_proj_weight"].T + torch["attn.in_proj_bias"], 3, -1)
    for name, expected in zip(("query", "key", "value"), parts, strict=True):
        found = np.einsum("ni,ihd->nhd", x, new[name]["kernel"]) + new[name]["bias"]
        # torch splits the outputs into heads, each of which has neighbouring features
        np.testing.assert_allclose(found, expected.reshape(5, HEADS, -1), rtol=1e-5, atol=1e-6)
    heads = array(5, HEADS, WIDTH // HEADS)
    found = np.einsum("nhd,hdo->no", heads, new["out"]["kernel"]) + new["out"]["bias"]
    weight, bias = torch["attn.out_proj.weight"], torch["attn.out_proj.bias"]
    np.testing.assert_allclose(found, heads.reshape(5, -1) @ weight.T + bias, rtol=1e-5, atol=1e-6)


def test_fused_projections_meet_separate_ones_both_ways():
    torch = fused()
    separate = {k: v for n in "qkvo" for k, v in linear(f"self.{n}_proj", WIDTH, WIDTH).items()}
    new = moved(torch, separate)
    third = torch["attn.in_proj_weight"][2 * WIDTH :]
    np.testing.assert_array_equal(new["self.v_proj.weight"], third)
    back = moved(new, torch)
    assert all(np.array_equal(back[name], torch[name]) for name in torch)


KERAS = {
    "sequential/conv2d/kernel": (3, 3, 1, 4),
    "sequential/conv2d/bias": (4,),
    "sequential/batch_normalization/gamma": (4,),
    "sequential/batch_normalization/beta": (4,),
    "sequential/batch_normalization/moving_mean": (4,),
    "sequential/batch_normalization/moving_variance": (4,),
    "sequential/multi_head_attention/query/kernel": (4, 2, 2),
    "sequential/multi_head_attention/key/kernel": (4, 2, 2),
    "sequential/multi_head_attention/value/kernel": (4, 2, 2),
    "sequential/multi_head_attention/attention_output/kernel": (2, 2, 4),
    "sequential/embedding/embeddings": (5, 4),
    "sequential/dense/kernel": (4, 4),
    "sequential/dense_1/kernel": (4, 4),
}
"""Paths and shapes of `model.weights` in Keras 3."""


def test_weights_of_keras():
    keras = {path: array(*shape) for path, shape in KERAS.items()}
    attention = {name: {"kernel": array(4, 2, 2)} for name in ("query", "key", "value")}
    params = {
        "Conv_0": {"kernel": array(3, 3, 1, 4), "bias": array(4)},
        "BatchNorm_0": {"scale": array(4), "bias": array(4)},
        "Attention_0": {**attention, "out": {"kernel": array(2, 2, 4)}},
        "Embed_0": {"embedding": array(5, 4)},
        "Dense_0": {"kernel": array(4, 4)},
        "Dense_1": {"kernel": array(4, 4)},
    }
    state = {"batch_stats": {"BatchNorm_0": {"mean": array(4), "var": array(4)}}}
    new, stats = moved(keras, (params, state), "keras")
    norm = stats["batch_stats"]["BatchNorm_0"]
    for mine, theirs in [
        (new["Conv_0"]["kernel"], "conv2d/kernel"),
        (new["BatchNorm_0"]["scale"], "batch_normalization/gamma"),
        (norm["var"], "batch_normalization/moving_variance"),
        (new["Attention_0"]["key"]["kernel"], "multi_head_attention/key/kernel"),
        (new["Attention_0"]["out"]["kernel"], "multi_head_attention/attention_output/kernel"),
        (new["Embed_0"]["embedding"], "embedding/embeddings"),
        (new["Dense_1"]["kernel"], "dense_1/kernel"),
    ]:
        np.testing.assert_array_equal(mine, keras[f"sequential/{theirs}"])
    back = moved((new, stats), keras, "flax")
    assert all(np.array_equal(back[path], keras[path]) for path in keras)


@pytest.mark.parametrize("layers", [[stax.Dense(3)], [stax.Dense(4), stax.Relu, stax.Dense(3)]])
def test_weights_of_stax(layers):
    _, params = stax.serial(*layers)[0](jax.random.key(0), (-1, 4))
    names = [f"layers.{2 * at}" for at in range(len(layers) // 2 + 1)]
    torch = linear(names[0], 4, 4) if names[1:] else {}
    torch |= linear(names[-1], 4, 3)
    new, state = moved(torch, (params, ()))
    assert state == ()
    np.testing.assert_array_equal(new[-1][0], torch[f"{names[-1]}.weight"].T)
    back = moved(new, torch, "stax")
    assert all(np.array_equal(back[name], torch[name]) for name in torch)


# Which layer is which.


@pytest.mark.parametrize("first", [0, 1, 9])
@pytest.mark.parametrize("names", ["Dense_{}", "blocks.{}.up", "linear_{}"])
def test_layers_of_one_shape_come_in_the_order_of_their_numbers(first, names):
    torch = {k: v for n in range(12) for k, v in linear(f"net.{2 * n}", 4, 4).items()}
    numbers = range(first, first + 12)
    # Haiku and Keras leave the number of the first one out
    mine = [names.format(n).removesuffix("_0") for n in numbers]
    new = moved(torch, {name: dense(4, 4) for name in reversed(mine)})
    for at, name in enumerate(mine):
        np.testing.assert_array_equal(new[name]["kernel"], torch[f"net.{2 * at}.weight"].T)


@pytest.mark.parametrize(
    "pairs",
    [
        {"attn/query": "self_attn.q_proj", "attn/key": "self_attn.k_proj"},
        {"enc/Dense_0": "enc.fc", "dec/Dense_0": "dec.fc"},
        {"attn/out": "h.attn.proj", "mlp/down": "h.mlp.c_proj"},
        {f"MultiHeadAttention_0/{n}": f"attention.self.{n}" for n in ("query", "key", "value")}
        | {"MultiHeadAttention_0/out": "attention.output.dense"},
        {f"Block_{n}/{name}": f"{n}.{name}" for n in range(2) for name in ("up", "down")},
        {f"Block_{n}/Dense_{at}": f"{n}.fc{at + 1}" for n in range(2) for at in range(2)},
        {"init": "stem", "Res_0/Dense_0": "layer1.0.fc1", "Res_0/Dense_1": "layer1.0.fc2"},
        {"out": "classifier"},
    ],
)
def test_layers_of_one_shape_are_told_apart_by_their_names(pairs):
    torch = {k: v for name in pairs.values() for k, v in linear(name, 4, 4).items()}
    new = moved(torch, {name: dense(4, 4) for name in reversed(pairs)})
    for mine, theirs in pairs.items():
        np.testing.assert_array_equal(new[mine]["kernel"], torch[f"{theirs}.weight"].T)


AMBIGUOUS = [
    (["Dense_0", "Dense_1"], ["up", "down"]),
    (["a", "b"], ["c", "d"]),
    (["a", "b", "e"], ["c", "d"]),
    (["mlp/out", "attn/proj"], ["mlp.down", "attn.out"]),
    (["mlp/down", "mlp/Dense_2", "attn/proj"], ["mlp.fc2", "mlp.gate", "attn.out"]),
    (["proj", "mlp/Dense_1"], ["out_proj", "fc2"]),
    (["Block_0/norm_a", "Block_1/norm_a", "Block_0/b", "Block_1/b"], ["0.x", "1.x", "0.y", "1.y"]),
    (["enc_0", "enc_1", "dec"], ["dec_0", "dec_1", "enc"]),
    (["Dense_0", "Dense_1", "Dense_2"], ["l.0", "l.1", "head"]),
    (
        ["Dense_0", *(f"Block_{n}/Dense_{at}" for n in range(12) for at in range(2))],
        ["pool", *(f"h.{n}.{x}.proj" for n in range(12) for x in ("mlp", "other"))],
    ),
]


@pytest.mark.parametrize(("mine", "theirs"), AMBIGUOUS)
def test_what_is_ambiguous_is_asked_with_a_line_that_settles_it(mine, theirs):
    torch = {k: v for name in theirs for k, v in linear(name, 4, 4).items()}
    like = {name: dense(4, 4) for name in mine}
    with pytest.raises(ValueError, match="several layers are alike") as error:
        moved(torch, like)
    layers = eval(re.search(r"`layers=({.*?})`", str(error.value))[1])
    assert len(layers) < 5
    new = moved(torch, like, layers=layers)
    for one, other in [pair for pair in layers.items() if pair[1] is not None]:
        for number in range(12 if "*" in one else 1):
            one_of_it, other_of_it = (x.replace("*", str(number)) for x in (one, other))
            if one_of_it in new:
                expected = torch[f"{other_of_it}.weight"].T
                np.testing.assert_array_equal(new[one_of_it]["kernel"], expected)


@given(st.permutations(range(4)))
def test_layers_names_each_layer_and_stars_stand_for_numbers(order):
    names = "abcd"
    torch = {k: v for n in range(3) for x in names for k, v in linear(f"{n}.{x}", 2, 2).items()}
    like = {f"Block_{n}": {f"Dense_{at}": dense(2, 2) for at in range(4)} for n in range(3)}
    layers = {f"Block_*/Dense_{at}": f"*.{names[other]}" for at, other in enumerate(order)}
    new = moved(torch, like, layers=layers)
    for n in range(3):
        for at, other in enumerate(order):
            expected = torch[f"{n}.{names[other]}.weight"].T
            np.testing.assert_array_equal(new[f"Block_{n}"][f"Dense_{at}"]["kernel"], expected)


def test_layers_may_name_modules_and_a_layer_may_serve_twice():
    torch = linear("one.fc1", 4, 4) | linear("one.fc2", 4, 4)
    like = {m: {f"Dense_{at}": dense(4, 4) for at in range(2)} for m in ("a", "b")}
    new = moved(torch, like, layers={"a": "one", "b": "one"})
    for module in ("a", "b"):
        np.testing.assert_array_equal(new[module]["Dense_1"]["kernel"], torch["one.fc2.weight"].T)


@pytest.mark.parametrize("heads", [["fc"], [f"old.{n}.fc" for n in range(11)]])
def test_a_partial_match_is_refused_with_the_lines_that_allow_it(heads):
    torch, like = linear("body", 4, 8), {"body": dense(4, 8)}
    torch |= {k: v for name in heads for k, v in linear(name, 8, 1000).items()}
    like["head"] = dense(8, 10)
    with pytest.raises(ValueError, match=r"no weights for head .*no place for .*fc ") as error:
        moved(torch, like)
    layers, unused = (
        eval(re.search(rf"`{name}=(.*?)`", str(error.value))[1]) for name in ("layers", "unused")
    )
    assert len(unused) == 1
    new = moved(torch, like, layers=layers, unused=unused)
    np.testing.assert_array_equal(new["head"]["kernel"], like["head"]["kernel"])
    np.testing.assert_array_equal(new["body"]["kernel"], torch["body.weight"].T)
    for option in ({"layers": layers}, {"unused": unused}):
        with pytest.raises(ValueError, match=r"head|fc"):
            moved(torch, like, **option)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": {"nope": "fc"}}, r"layers has the path 'nope', and like has Dense_0"),
        ({"layers": {"Dense_0": "nope"}}, r"path 'nope', and the source has fc"),
        ({"unused": ["nope"]}, r"unused='nope' matches nothing in the source; it has fc\.bias"),
        ({"layers": {"*": "*"}}, r"path '\*'"),
        ({"flattened": {"fc": 3}}, r"names no dense layer; there is 'Dense_0'"),
        ({"flattened": {"Dense_0": 3}}, "has 4 inputs, which are not images of 3 channels"),
        ({"flattened": {"Dense_0": 0}}, "flattened.* must be 1 or more"),
    ],
)
def test_an_argument_that_names_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        moved(linear("fc", 4, 4), {"Dense_0": dense(4, 4)}, **options)


def test_an_array_of_no_layer_moves_by_its_name_alone():
    torch, like = {"cls": array(1, 4), "pos": array(1, 4)}, {"pos": array(1, 4), "cls": array(1, 4)}
    assert all(np.array_equal(moved(torch, like)[name], torch[name]) for name in torch)
    with pytest.raises(ValueError, match="if these are the same") as error:
        moved({"cls_token": array(1, 4)}, {"cls": array(1, 4)})
    layers = eval(
        re.search(r"`layers=({.*?})`", str(error.value).partition("these are the same")[2])[1]
    )
    token = array(1, 4)
    new = moved({"cls_token": token}, {"cls": array(1, 4)}, layers=layers)
    np.testing.assert_array_equal(new["cls"], token)


@pytest.mark.parametrize("extra", [{"b.weight": array(4)}, {"lstm.weight_ih_l0": array(16, 4)}])
def test_a_layer_that_no_layout_has_is_refused(extra):
    with pytest.raises(ValueError, match="no place for"):
        moved(linear("fc", 4, 4) | extra, {"Dense_0": dense(4, 4)})


def test_a_transposed_convolution_is_refused_where_a_name_says_it():
    torch = {"up.weight": array(4, 4, 2, 2), "up.bias": array(4)}
    like = {"ConvTranspose_0": {"kernel": array(2, 2, 4, 4), "bias": array(4)}}
    with pytest.raises(ValueError, match="'ConvTranspose_0' is a transposed convolution"):
        moved(torch, like)


# Images that are flattened.


def cnn():
    torch = {"c.weight": array(3, 1, 2, 2), "c.bias": array(3)} | linear("fc", 12, 5)
    like = {"Conv_0": {"kernel": array(2, 2, 1, 3), "bias": array(3)}, "Dense_0": dense(12, 5)}
    return torch, like


def test_the_inputs_of_a_flattened_image_are_put_into_order():
    torch, like = cnn()
    with pytest.warns(UserWarning, match=r"flattened={'Dense_0': 3}"):
        new = moved(torch, like)
    image = array(2, 3, 2, 2)
    expected = image.reshape(2, -1) @ torch["fc.weight"].T
    found = np.moveaxis(image, 1, -1).reshape(2, -1) @ new["Dense_0"]["kernel"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.warns(UserWarning, match=r"flattened={'fc': 3}"):
        back = moved(new, torch, "flax")
    np.testing.assert_array_equal(back["fc.weight"], torch["fc.weight"])


def test_who_writes_it_gets_no_warning():
    torch, like = cnn()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named = moved(torch, like, flattened={"Dense_0": 3})
        left = moved(torch, like, flattened={})
        moved(torch, torch)  # both with channels first
    assert not np.array_equal(named["Dense_0"]["kernel"], left["Dense_0"]["kernel"])
    np.testing.assert_array_equal(left["Dense_0"]["kernel"], torch["fc.weight"].T)


def test_what_cannot_be_known_of_an_image_is_asked():
    torch, like = cnn()
    # One of them gets the image, and the other what the first computes.
    torch |= linear("fc", 12, 12) | linear("out", 12, 5)
    like |= {"Dense_0": dense(12, 12), "Dense_1": dense(12, 5)}
    with pytest.raises(ValueError, match="may get a flattened image") as error:
        moved(torch, like)
    flattened = eval(re.search(r"`flattened=({.*?})`", str(error.value))[1])
    moved(torch, like, flattened=flattened)


# Running averages.


def batch_norm():
    return {
        **{f"bn.{name}": array(3) for name in ("weight", "bias", "running_mean", "running_var")},
        "bn.num_batches_tracked": np.asarray(7),
    }


def norm_of(like):
    return {"scale": like["bn.weight"], "bias": like["bn.bias"]}


def test_averages_go_into_the_state():
    torch = batch_norm()
    params = {"norm": norm_of(batch_norm())}
    state = {"batch_stats": {"norm": {"mean": array(3), "var": array(3)}}}
    new, stats = moved(torch, (params, state))
    np.testing.assert_array_equal(new["norm"]["scale"], torch["bn.weight"])
    np.testing.assert_array_equal(stats["batch_stats"]["norm"]["mean"], torch["bn.running_mean"])
    np.testing.assert_array_equal(stats["batch_stats"]["norm"]["var"], torch["bn.running_var"])
    variables = moved(torch, {"params": params, **state})
    assert eqx.tree_equal(variables, {"params": new, **stats})


def test_averages_without_a_place_are_refused_and_so_is_a_place_without_averages():
    torch, params = batch_norm(), {"norm": norm_of(batch_norm())}
    with pytest.raises(ValueError, match="'bn' in the source has running averages") as error:
        moved(torch, params)
    unused = eval(re.search(r"`unused=(.*?)`", str(error.value))[1])
    new = moved(torch, params, unused=unused)
    np.testing.assert_array_equal(new["norm"]["bias"], torch["bn.bias"])
    state = {"batch_stats": {"norm": {"mean": array(3), "var": array(3)}}}
    with pytest.raises(ValueError, match="'norm' has running averages, and 'norm' in the source"):
        moved(params, (params, state), "flax")


class Net(eqx.Module):
    """A BatchNorm, of which the output in inference shows the averages."""

    norm: eqx.nn.BatchNorm

    def __init__(self, key, mode="batch"):
        self.norm = eqx.nn.BatchNorm(3, "batch", momentum=0.9, mode=mode)

    def __call__(self, x, state):
        return self.norm(x, state)


def normalised(x, torch):
    """The formula of torch's documentation."""
    scale = torch["bn.weight"] / np.sqrt(torch["bn.running_var"] + 1e-5)
    return (np.asarray(x) - torch["bn.running_mean"]) * scale + torch["bn.bias"]


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_equinox_uses_averages_that_come_from_elsewhere(mode):
    torch, x = batch_norm(), jnp.asarray(array(4, 3))
    torch["bn.running_var"] = np.abs(torch["bn.running_var"]) + 1
    model = EquinoxModel(lambda key: eqx.nn.make_with_state(Net)(key, mode))
    params, state = moved(torch, model.init(jax.random.key(0), x))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        outputs, _ = model.forward(params, state, x, train=False)
        _, after = model.forward(params, state, x, train=True)
        # A step moves them by a tenth, as if many had come before.
        found, _ = model.forward(params, after, x, train=False)
    np.testing.assert_allclose(outputs, normalised(x, torch), rtol=1e-5, atol=1e-5)
    torch["bn.running_mean"] = 0.9 * torch["bn.running_mean"] + 0.1 * np.mean(np.asarray(x), 0)
    torch["bn.running_var"] = 0.9 * torch["bn.running_var"] + 0.1 * np.var(np.asarray(x), 0)
    np.testing.assert_allclose(found, normalised(x, torch), rtol=1e-5, atol=1e-5)


def test_averages_of_equinox_go_out_as_it_uses_them():
    """After one step they are a tenth of the way, and Equinox divides by that."""
    x = jnp.asarray(array(4, 3))
    model = EquinoxModel(lambda key: eqx.nn.make_with_state(Net)(key))
    params, state = model.init(jax.random.key(0), x)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        _, state = model.forward(params, state, x, train=True)
    new = moved((params, state), batch_norm(), "equinox")
    np.testing.assert_allclose(new["bn.running_mean"], np.mean(x, 0), rtol=1e-4, atol=1e-6)
    assert new["bn.num_batches_tracked"] == 7  # torch's own count stays


# What `like` gives, and what comes back.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_shapes_dtypes_and_devices_are_those_of_like(dtype):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    like = {"Dense_0": {"kernel": jax.device_put(jnp.zeros((4, 6), dtype), place)}}
    source = {"fc.weight": array(6, 4).astype(np.float64)}
    new = moved(source, like)["Dense_0"]["kernel"]
    assert (new.dtype, new.sharding) == (jnp.dtype(dtype), place)
    np.testing.assert_array_equal(new, source["fc.weight"].T.astype(dtype))
    shapes = jax.eval_shape(lambda: like)
    assert jax.tree.map(jnp.shape, moved(source, shapes)) == jax.tree.map(jnp.shape, like)


def test_numbers_that_are_not_floats_are_refused():
    with pytest.raises(TypeError, match="is float32, and int8 in the source"):
        moved({"fc.weight": np.ones((6, 4), np.int8)}, {"Dense_0": {"kernel": array(4, 6)}})


def test_a_whole_module_of_equinox_keeps_what_is_no_array():
    mlp = eqx.nn.MLP(3, 2, 4, 2, key=jax.random.key(0))
    torch = linear("0", 3, 4) | linear("2", 4, 4) | linear("4", 4, 2)
    new = moved(torch, mlp)
    assert new.activation is mlp.activation
    np.testing.assert_array_equal(new.layers[1].weight, torch["2.weight"])


def experiment(model=None):
    net = model or eqx.nn.Linear(4, 3, key=jax.random.key(0))
    return solstice.ClassificationExperiment(net, Sgd(0.1, momentum=0.9), num_classes=3)


class Own(solstice.Experiment):
    net: eqx.nn.Linear

    def train_step(self, batch):
        return self, {}

    def eval_step(self, batch):
        return self, {}


BATCH = (array(5, 4), np.zeros(5, np.int32))


def test_an_experiment_starts_from_the_weights():
    torch = linear("fc", 4, 3)
    trained = solstice.Trainer().fit(experiment(), [BATCH] * 3)
    new = moved(torch, trained)
    np.testing.assert_array_equal(new.params.weight, torch["fc.weight"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(new.opt_state))  # no momentum of before
    np.testing.assert_allclose(new(BATCH[0]), BATCH[0] @ torch["fc.weight"].T + torch["fc.bias"])
    back = moved(new, torch, "equinox")
    np.testing.assert_array_equal(back["fc.weight"], torch["fc.weight"])
    with pytest.raises(ValueError, match=r"exp = exp.setup\(batch\)"):
        moved(torch, experiment())
    with pytest.raises(TypeError, match="Own has no `with_params`"):
        moved(torch, Own(new.params))


def test_the_state_of_the_model_is_taken_with_the_params():
    model = EquinoxModel(lambda key: eqx.nn.make_with_state(Net)(key))
    exp = solstice.ClassificationExperiment(
        model, Sgd(0.1), num_classes=3, sample_input=array(2, 3)
    )
    torch = batch_norm()
    new = moved(torch, exp)
    found = moved(new, batch_norm(), "equinox")
    np.testing.assert_array_equal(found["bn.running_mean"], torch["bn.running_mean"])
    kept = exp.with_params(new.params)
    assert eqx.tree_equal(kept.state, exp.state)
    with pytest.raises(ValueError, match=r"the given state does not fit .* it has nothing"):
        exp.with_params(new.params, (new.state,))


# Files.


def test_a_file_is_read_and_another_written(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    torch = linear("fc", 4, 3)
    library.save_file(torch, tmp_path / "torch.safetensors")
    like = {"Dense_0": {"kernel": jnp.zeros((4, 3), jnp.bfloat16), "bias": jnp.zeros(3)}}
    new = moved(tmp_path / "torch.safetensors", like, to=tmp_path / "new" / "linen.safetensors")
    saved = library.load_file(tmp_path / "new" / "linen.safetensors")
    assert sorted(saved) == ["Dense_0/bias", "Dense_0/kernel"]
    np.testing.assert_array_equal(saved["Dense_0/kernel"], new["Dense_0"]["kernel"])
    moved(new, torch, "flax", to=tmp_path / "back.safetensors")
    back = library.load_file(tmp_path / "back.safetensors")
    np.testing.assert_array_equal(back["fc.bias"], torch["fc.bias"])
    again = moved(tmp_path / "new" / "linen.safetensors", like, "flax")
    assert eqx.tree_equal(again, new)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("none.safetensors", FileNotFoundError, "there is no file"),
        ("damaged.safetensors", ValueError, "is not a whole file of safetensors"),
        ("a.pt", ValueError, r"safetensors.torch.save_file\(torch.load\(path, weights_only=True\)"),
        ("a.weights.h5", ValueError, r"keras.saving.load_model\(path\)"),
        ("", OSError, "is not a file: it is a folder"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name, error, message):
    pytest.importorskip("safetensors")
    if name[:4] != "none":
        (tmp_path / (name or ".")).is_dir() or (tmp_path / name).write_bytes(b"\0" * 20)
    with pytest.raises(error, match=message):
        moved(tmp_path / name, {"Dense_0": dense(4, 3)})


def test_nothing_is_written_where_nothing_can_be_converted(tmp_path):
    pytest.importorskip("safetensors")
    with pytest.raises(ValueError, match="no weights for"):
        moved(linear("fc", 4, 3), {"Dense_0": dense(4, 4)}, to=tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        moved(linear("fc", 4, 3), {"Dense_0": dense(4, 3)}, to=tmp_path / "a.npz")
    assert [*tmp_path.iterdir()] == []


# Layouts.


def test_a_layout_of_ones_own():
    toynet = {"dense": {"kernel": ("w", "oi"), "bias": ("b", "o")}}
    like = {"one": {"w": array(3, 4), "b": array(3)}}
    torch = linear("fc", 4, 3)
    new = moved(torch, like, like_layout=toynet)
    np.testing.assert_array_equal(new["one"]["w"], torch["fc.weight"])
    back = moved(new, torch, toynet)
    np.testing.assert_array_equal(back["fc.weight"], torch["fc.weight"])


SOURCE = "TOYNET = {'dense': {'kernel': ('v', 'oi'), 'bias': ('c', 'o')}}\nOTHER = 5\n"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Packages with layouts of their own; three of them are broken."""
    points = [("toynet", "TOYNET"), ("number", "OTHER"), ("none", "NONE"), ("torch", "TOYNET")]
    claims = [("solstice.layouts.v1", name, value) for name, value in points]
    wheels = [write_wheel(tmp_path, "toy", SOURCE, claims)]
    wheels.append(write_wheel(tmp_path, "bad", "1 / 0", [("solstice.layouts.v1", "bad", "BAD")]))
    for wheel in wheels:
        monkeypatch.syspath_prepend(wheel)
    caches = (_claims.claims, _claims._installed)
    [cache.cache_clear() for cache in caches]
    yield
    [cache.cache_clear() for cache in caches]
    [sys.modules.pop(name, None) for name in ("toy", "bad")]


@pytest.mark.usefixtures("installed")
def test_an_installed_layout_is_found_by_its_name_and_by_its_leaves():
    like, torch = {"one": {"v": array(3, 4), "c": array(3)}}, linear("fc", 4, 3)
    new = moved(torch, like)  # which layout it has shows in its leaves
    np.testing.assert_array_equal(new["one"]["v"], torch["fc.weight"])
    np.testing.assert_array_equal(moved(new, torch, "toynet")["fc.bias"], torch["fc.bias"])
    assert {"toynet", "torch", "keras"} <= {*layouts.layout_names()}
    with pytest.raises(AdapterError, match=r"the layout 'bad:BAD' of bad 0\.1 is installed but"):
        moved(torch, like, "bad")
    with pytest.raises(AdapterError, match="NONE"):
        moved(torch, like, "none")
    with pytest.raises(TypeError, match="layout='number' is not a layout, but 5"):
        moved(torch, like, "number")
    with pytest.raises(ValueError, match="layout='theano' is not a layout; there is bad, equinox"):
        moved(torch, like, "theano")
    assert not {"toynet", "TOYNET"} & {info.wraps for info in solstice.compat.adapters()}


@pytest.mark.usefixtures("installed")
def test_leaves_that_fit_two_layouts_are_asked_for():
    from_toy = {"dense": {"kernel": ("weight", "io"), "bias": ("bias", "o")}}
    sys.modules.pop("toy", None)
    import toy

    toy.TOYNET = from_toy
    with pytest.raises(ValueError, match=r"like_layout='torch'"):
        moved({"Dense_0": dense(4, 4)}, linear("fc", 4, 4), "flax")
