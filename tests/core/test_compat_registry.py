"""Adapters are found from installed metadata, by type and by name, and errors say what to do."""

import gc
import json
import os
import re
import subprocess
import sys
import textwrap
import weakref
from importlib.metadata import PackageNotFoundError, version

import equinox as eqx
import jax
import pytest
from jax.example_libraries import stax
from wheels import install, write_wheel

import solstice
from solstice import compat
from solstice.compat import AdapterError, EquinoxModel, Model, Optimizer, as_model, as_optimizer

KNOWN = {
    "FlaxModel": ("flax.linen.module", "solstice-flax"),
    "NNXModel": ("flax.nnx.module", "solstice-flax"),
    "HaikuModel": ("haiku._src.transform", "solstice-haiku"),
    "StaxModel": ("jax.example_libraries.stax", "solstice-stax"),
    "OptaxOptimizer": ("optax._src.base", "solstice-optax"),
}


class Sgd:
    """An optimizer as small as can be."""

    def init(self, params, /):
        return ()

    def step(self, grads, state, params, /, *, value=None, value_fn=None, **extra):
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), state

    def eval_params(self, state, params, /):
        return params


def mlp():
    return eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))


def object_of(module):
    """An object whose class says that it was defined in some module."""
    return type("Thing", (), {"__module__": module})()


def skip_if_installed(distribution):
    try:
        version(distribution)
    except PackageNotFoundError:
        return
    pytest.skip(f"{distribution} is installed; this is about where it is not")


# Objects


def test_an_adapter_is_returned_as_it_is():
    model, optimizer = EquinoxModel(mlp()), Sgd()
    assert as_model(model) is model
    assert as_optimizer(optimizer) is optimizer


def test_an_adapter_takes_no_more_options():
    with pytest.raises(TypeError, match=r"adapter already.*axis_name"):
        as_model(EquinoxModel(mlp()), axis_name="b")


def test_a_bare_module_is_wrapped_by_its_type():
    module = mlp()
    model = as_model(module)
    assert type(model) is EquinoxModel
    assert isinstance(model, Model)
    assert model.model is module


def test_a_pair_of_module_and_state_is_wrapped_by_its_first_part():
    pair = mlp(), eqx.nn.State(mlp())
    model = as_model(pair)
    assert type(model) is EquinoxModel
    assert as_model((pair[0], pair[1])) is model


def test_options_go_to_the_class_and_make_another_adapter():
    module = mlp()
    model = as_model(module)
    named = as_model(module, axis_name="examples")
    assert named.axis_name == "examples"
    assert as_model(module) is model
    assert model.axis_name == "batch"


def test_a_wrong_option_is_an_error():
    with pytest.raises(TypeError, match="train_arg"):
        as_model(mlp(), train_arg="train")


def test_the_same_object_gives_the_same_adapter_and_another_another():
    one, other = mlp(), mlp()
    first = as_model(one)
    assert as_model(one) is first
    assert as_model(other) is not first


def test_an_adapter_that_nobody_holds_is_let_go():
    model = as_model(mlp())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_an_experiment_wraps_a_bare_module_once():
    module = mlp()
    one = solstice.ClassificationExperiment(module, Sgd(), num_classes=2)
    other = solstice.ClassificationExperiment(module, Sgd(), num_classes=2)
    assert one.learner.model is other.learner.model


@pytest.mark.parametrize("obj", [None, 3, "mlp", (), [], {}, object_of("nowhere.to.be.found")])
def test_an_object_of_no_known_framework(obj):
    with pytest.raises(
        TypeError, match=r"no installed adapter wraps a .*equinox.*init and forward"
    ):
        as_model(obj)


def test_the_message_names_the_type_and_the_methods_of_an_optimizer():
    with pytest.raises(
        TypeError, match=r"nowhere\.Thing.*optimizer types.*init, step and eval_par"
    ):
        as_optimizer(object_of("nowhere"))


@pytest.mark.parametrize("convert", [as_model, as_optimizer])
def test_a_class_in_place_of_an_instance(convert):
    class Net:
        pass

    with pytest.raises(TypeError, match=r"the class Net; give an instance"):
        convert(Net)


@pytest.mark.parametrize("cls", [EquinoxModel, Sgd])
def test_a_class_with_the_right_methods_is_no_adapter(cls):
    with pytest.raises(TypeError, match=rf"the class {cls.__name__}; give an instance"):
        (as_model if cls is EquinoxModel else as_optimizer)(cls)


def test_a_class_of_a_framework_whose_metaclass_is_its_own():
    with pytest.raises(TypeError, match=r"the class MLP; give an instance"):
        as_model(eqx.nn.MLP)


def test_a_factory_needs_the_name_of_its_adapter():
    with pytest.raises(TypeError, match=r"a function.*Name the adapter.*EquinoxModel\(factory\)"):
        as_model(lambda key: mlp())
    key = jax.random.key(0)
    assert isinstance(EquinoxModel(lambda key: mlp()).init(key, None), tuple)


def test_a_model_for_an_optimizer():
    with pytest.raises(TypeError, match=r"as_optimizer was given a model: equinox.*Use as_model"):
        as_optimizer(mlp())


# Names


def test_dir_lists_the_public_names():
    assert {*solstice.compat.__all__} <= set(dir(solstice.compat))


def test_an_unknown_name_lists_the_adapters():
    with pytest.raises(AttributeError, match=r"no attribute 'FlaxModle'.*EquinoxModel"):
        solstice.compat.FlaxModle  # noqa: B018


def test_a_private_name_is_an_ordinary_attribute_error():
    assert not hasattr(solstice.compat, "__wrapped__")
    assert not hasattr(solstice.compat, "_nothing")


def test_an_adapter_error_is_an_import_error():
    assert issubclass(AdapterError, ImportError)


@pytest.mark.parametrize("name", KNOWN)
def test_a_name_whose_adapter_is_not_installed(name):
    _, distribution = KNOWN[name]
    skip_if_installed(distribution)
    with pytest.raises(AdapterError, match=rf"{name}.*pip install \S*packages/{distribution}"):
        getattr(solstice.compat, name)
    with pytest.raises(AdapterError, match=rf"pip install \S*packages/{distribution}"):
        exec(f"from solstice.compat import {name}")
    assert name not in dir(solstice.compat)


@pytest.mark.parametrize("name", KNOWN)
def test_an_object_whose_adapter_is_not_installed(name):
    module, distribution = KNOWN[name]
    skip_if_installed(distribution)
    convert = as_optimizer if name == "OptaxOptimizer" else as_model
    install = rf"pip install \S*packages/{distribution}"
    with pytest.raises(AdapterError, match=rf"{module}\.Thing.*{name}.*{install}"):
        convert(object_of(module))


def test_a_bare_pair_of_stax_without_its_adapter():
    skip_if_installed("solstice-stax")
    with pytest.raises(AdapterError, match=r"pip install \S*packages/solstice-stax"):
        as_model(stax.Dense(2))


def test_the_wrong_kind_is_told_before_what_to_install():
    with pytest.raises(TypeError, match=r"as_model was given an optimizer.*Use as_optimizer"):
        as_model(object_of("optax._src.base"))
    with pytest.raises(TypeError, match=r"as_optimizer was given a model.*Use as_model"):
        as_optimizer(object_of("flax.linen.module"))


# Distributions of third parties, in a process of its own

MODEL = """
class {name}:
    def __init__(self, net, scale=1):
        self.net, self.scale = net, scale

    def init(self, key, x, /):
        return {{}}, {{}}

    def forward(self, params, state, x, /, *, train, key=None):
        return x, state
"""

OPTIMIZER = """
class {name}:
    def __init__(self, tx):
        self.tx = tx

    def init(self, params, /):
        return ()

    def step(self, grads, state, params, /, *, value=None, value_fn=None, **extra):
        return params, state

    def eval_params(self, state, params, /):
        return params
"""

LAME = """
class LameModel:
    def __init__(self, net):
        pass

    def init(self, key, x, /):
        return {}, {}
"""

MODELS, OPTIMIZERS = "solstice.models.v1", "solstice.optimizers.v1"


def write_wheels(folder):
    """Of third parties, good and bad; and the frameworks that they wrap."""

    def write(name, source, *claims):
        return write_wheel(folder, name, source, claims)

    frameworks = ["good", "special", "twice", "broken", "bad", "new", "old", "both", "lame"]
    twice = MODEL.format(name="TwiceModel")
    both = MODEL.format(name="BothModel") + MODEL.format(name="BothModel2")
    newer, older = "solstice.models.v2", "solstice.models.v0"
    return [
        *(write(f"{name}lib", "class Net:\n    pass\n") for name in frameworks),
        write("good", MODEL.format(name="GoodModel"), (MODELS, "goodlib", "GoodModel")),
        write("tuned", OPTIMIZER.format(name="Tuned"), (OPTIMIZERS, "goodlib", "Tuned")),
        write("twice-a", twice, (MODELS, "twicelib", "TwiceModel")),
        write("twice-b", twice, (MODELS, "twicelib", "TwiceModel")),
        write(
            "broken", "raise RuntimeError('no such device')", (MODELS, "brokenlib", "BrokenModel")
        ),
        write("bad", "", (MODELS, "badlib", "BadModel")),
        write("new", MODEL.format(name="NewModel"), (newer, "newlib", "NewModel")),
        write("old", MODEL.format(name="OldModel"), (older, "oldlib", "OldModel")),
        write("both", both, (MODELS, "bothlib", "BothModel"), (newer, "bothlib", "BothModel2")),
        write("lame", LAME, (MODELS, "lamelib", "LameModel")),
    ]


PROGRAM = """
import importlib, json, sys
import solstice
from solstice.compat import as_model, as_optimizer

found = {}
adapters = ["good", "tuned", "twice_a", "twice_b", "broken", "bad", "new", "old", "both", "lame"]

def loaded():
    return [name for name in adapters if name in sys.modules]

def attempt(function):
    try:
        result = function()
    except Exception as error:
        cause = error.__cause__
        return {
            "error": type(error).__name__,
            "is_import_error": isinstance(error, ImportError),
            "message": str(error),
            "cause": None if cause is None else repr(cause),
        }
    return {"result": getattr(result, "__name__", type(result).__name__)}

def net(name):
    return importlib.import_module(f"{name}lib").Net()

found["asked at import"] = solstice.compat._registry.claims.cache_info().misses
found["names"] = dir(solstice.compat)
found["loaded after dir"] = loaded()
for name in ["good", "twice", "broken", "bad", "new", "old", "both", "lame"]:
    found[name] = attempt(lambda: as_model(net(name)))
    if name == "good":
        found["loaded after good"] = loaded()
    found[name + " by name"] = attempt(
        lambda: getattr(solstice.compat, name.capitalize() + "Model"))
found["new again"] = attempt(lambda: solstice.compat.BothModel2)

class Mine(type(net("good"))):
    pass

found["subclass"] = attempt(lambda: as_model(Mine()))
found["option"] = as_model(net("good"), scale=3).scale
found["tuned"] = attempt(lambda: as_optimizer(net("good")))
found["tuned by name"] = attempt(lambda: solstice.compat.Tuned)
found["same class"] = solstice.compat.GoodModel is sys.modules["good"].GoodModel
found["unknown"] = attempt(lambda: as_model(3))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a process finds where all these distributions are installed, by pip."""
    folder = tmp_path_factory.mktemp("site")
    install(write_wheels(tmp_path_factory.mktemp("wheels")), folder)
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_third_partys_adapter_is_found_by_type_and_by_name(found):
    assert found["good"] == {"result": "GoodModel"}
    assert found["good by name"] == {"result": "GoodModel"}
    assert found["same class"]
    assert found["subclass"] == {"result": "GoodModel"}
    assert found["option"] == 3


def test_one_prefix_may_have_a_model_and_an_optimizer(found):
    assert found["tuned"] == {"result": "Tuned"}
    assert found["tuned by name"] == {"result": "Tuned"}


def test_importing_solstice_asks_nothing_of_what_is_installed(found):
    assert found["asked at import"] == 0


def test_nothing_is_imported_before_it_is_used(found):
    assert {"GoodModel", "Tuned", "BrokenModel", "LameModel"} <= set(found["names"])
    assert found["loaded after dir"] == []
    assert found["loaded after good"] == ["good"]


def test_dir_leaves_out_what_speaks_another_protocol(found):
    assert not {"NewModel", "OldModel", "BothModel2"} & set(found["names"])


@pytest.mark.parametrize("how", ["twice", "twice by name"])
def test_two_distributions_that_claim_one_name_are_both_named(found, how):
    answer = found[how]
    assert answer["error"] == "AdapterError"
    assert "claimed by 2 installed adapters" in answer["message"]
    assert "twice-a 0.1 (twice_a:TwiceModel)" in answer["message"]
    assert "twice-b 0.1 (twice_b:TwiceModel)" in answer["message"]
    assert "Uninstall all but one" in answer["message"]


@pytest.mark.parametrize("how", ["broken", "broken by name"])
def test_an_adapter_that_cannot_be_imported(found, how):
    answer = found[how]
    assert answer["error"] == "AdapterError"
    assert answer["is_import_error"]
    assert "broken 0.1" in answer["message"]
    assert "RuntimeError: no such device" in answer["message"]
    assert "pip install --upgrade broken" in answer["message"]
    assert "pip uninstall broken" in answer["message"]
    assert answer["cause"] == "RuntimeError('no such device')"


@pytest.mark.parametrize("how", ["bad", "bad by name"])
def test_an_adapter_whose_class_is_missing(found, how):
    answer = found[how]
    assert answer["error"] == "AdapterError"
    assert "'bad:BadModel' of bad 0.1" in answer["message"]
    assert "AttributeError" in answer["cause"]
    assert "pip install --upgrade bad" in answer["message"]


@pytest.mark.parametrize("how", ["new", "new by name", "new again"])
def test_an_adapter_of_a_newer_protocol(found, how):
    answer = found[how]
    assert answer["error"] == "AdapterError"
    assert "protocol v2" in answer["message"]
    assert "speaks v1" in answer["message"]
    assert re.search(r"pip install --upgrade \S*packages/solstice-core$", answer["message"])


@pytest.mark.parametrize("how", ["old", "old by name"])
def test_an_adapter_of_an_older_protocol(found, how):
    answer = found[how]
    assert answer["error"] == "AdapterError"
    assert "old 0.1" in answer["message"]
    assert answer["message"].endswith("pip install --upgrade old")


@pytest.mark.parametrize("how", ["both", "both by name"])
def test_an_adapter_of_two_protocols_is_used_by_the_one_that_is_spoken(found, how):
    assert found[how] == {"result": "BothModel"}


def test_an_adapter_whose_result_lacks_a_method(found):
    answer = found["lame"]
    assert answer["error"] == "AdapterError"
    assert "lame 0.1 (lame:LameModel)" in answer["message"]
    assert "has no forward." in answer["message"]


def test_the_prefixes_of_all_adapters_are_listed(found):
    assert found["unknown"]["error"] == "TypeError"
    for prefix in ["equinox", "goodlib", "brokenlib"]:
        assert prefix in found["unknown"]["message"]


@pytest.mark.parametrize("kind", [Model, Optimizer])
def test_the_protocols_can_be_checked_at_run_time(kind):
    assert isinstance(EquinoxModel(mlp()), kind) == (kind is Model)
    assert isinstance(Sgd(), kind) == (kind is Optimizer)


# What is registered in this process, and what there is


class Thing:
    """Of a framework that is defined here."""


class ThingModel:
    def __init__(self, obj):
        self.obj = obj

    def init(self, key, x, /):
        return self.obj, ()

    def forward(self, params, state, x, /, *, train, key=None):
        return x, state


@pytest.fixture
def registry():
    yield
    compat._registry._registered.clear()
    vars(compat).pop("ThingModel", None)


def test_an_adapter_may_be_registered(registry):
    thing = Thing()
    compat.register(__name__, ThingModel)
    assert type(as_model(thing)) is ThingModel
    assert as_model(thing).obj is thing
    assert compat.ThingModel is ThingModel
    assert "ThingModel" in dir(compat)


def test_what_is_registered_goes_before_what_is_installed(registry):
    compat.register("equinox", ThingModel)
    assert type(as_model(mlp())) is ThingModel
    told = {info.name: info.health for info in compat.adapters()}
    assert told["EquinoxModel"] == "hidden by an adapter of this process"
    assert told["ThingModel"] == "ok"


def test_the_newest_registration_counts(registry):
    class Other(ThingModel):
        pass

    compat.register(__name__, ThingModel)
    compat.register(__name__, Other)
    assert type(as_model(Thing())) is Other


@pytest.mark.parametrize(
    ("adapter", "unsupported"), [(Thing, "step, eval_params"), (3, "eval_params")]
)
def test_what_is_no_adapter_is_not_registered(registry, adapter, unsupported):
    with pytest.raises(TypeError, match=f"is not an adapter.*{unsupported}"):
        compat.register("thing", adapter)


def test_adapters_lists_what_there_is():
    mine = next(info for info in compat.adapters() if info.name == "EquinoxModel")
    assert mine == compat.AdapterInfo(
        name="EquinoxModel",
        wraps="equinox",
        kind="model",
        where="solstice.compat:EquinoxModel",
        distribution=f"solstice-core {solstice.__version__}",
        protocol=1,
        health="ok",
    )


def test_the_report_for_a_bug_has_versions_devices_and_adapters():
    result = subprocess.run(
        [sys.executable, "-m", "solstice"], capture_output=True, text=True, check=True
    )
    assert f"solstice-core {solstice.__version__}" in result.stdout
    assert f"jax {jax.__version__}" in result.stdout
    assert "devices: cpu:0" in result.stdout
    assert "EquinoxModel wraps equinox (models, protocol v1), solstice-core" in result.stdout
