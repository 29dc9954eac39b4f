"""The doctor, `python -m solstice`, among distributions that are broken in every way.

They are installed by pip, for real, beside good ones, and looked at in processes of their own.
"""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest
from wheels import install, write_wheel

MODELS = "[solstice.models.v1]\n"

GOOD = """
class {name}:
    def __init__(self, net):
        self.net = net

    def init(self, key, x, /):
        return {{}}, {{}}

    def forward(self, params, state, x, /, *, train, key=None):
        return x, state
"""

TRAP = """
class Trap(type):
    def __getattr__(cls, name):
        raise RuntimeError("a trap at " + name)

class Net(metaclass=Trap):
    pass
"""

MUTE = """
class Mute(Exception):
    def __str__(self):
        raise ValueError("no words")

raise Mute
"""

WRAPPED = """
try:
    import wrappedlib
except ImportError:
    raise RuntimeError("install wrappedlib first")
"""

OWN = "class Own(BaseException):\n    pass\n\nraise Own('of its own')"


def good(name="Net"):
    return GOOD.format(name=name)


# What each has in its module and in its entry_points.txt, and what its row says.
BAD = {
    "nocls": ("", MODELS + "csv = nocls", ["does not name a class", '"csv" = "nocls:ItsClass"']),
    "noref": ("", MODELS + "csv = !!", ["`csv = !!` does not name a class", "its_module:ItsClass"]),
    "novalue": ("", MODELS + "csv =", ["`csv = ` does not name a class"]),
    "noprefix": (good(), MODELS + "= noprefix:Net", ["has no name, which is the import prefix"]),
    "exits": ("raise SystemExit(0)", MODELS + "csv = exits:Net", ["SystemExit: 0"]),
    "ctrlc": ("raise KeyboardInterrupt", MODELS + "csv = ctrlc:Net", ["KeyboardInterrupt\n"]),
    "own": (OWN, MODELS + "csv = own:Net", ["Own: of its own"]),
    "mute": (MUTE, MODELS + "csv = mute:Net", ["could not be imported: Mute\n"]),
    "syntax": ("class :", MODELS + "csv = syntax:Net", ["SyntaxError"]),
    "nomodule": (good(), MODELS + "csv = no_module:Net", ["No module named 'no_module'"]),
    "noattr": (good(), MODELS + "csv = noattr:Nett", ["AttributeError", "'Nett'"]),
    "trap": (TRAP, MODELS + "csv = trap:Net", ["could not be examined: RuntimeError: a trap at"]),
    "half": ("class Net:\n    init = 1", MODELS + "csv = half:Net", ["it has no forward"]),
    "object": (good() + "net = Net(1)", MODELS + "csv = object:net", ["an object, not a class"]),
    "bare": ("import barelib", MODELS + "barelib.nn = bare:Net", ["The framework", "barelib"]),
    "wrapped": (WRAPPED, MODELS + "wrappedlib = wrapped:Net", ["The framework that it wraps"]),
    "needs": ("import neededlib", MODELS + "csv = needs:Net", ["No module named 'neededlib'"]),
    "declares": ("import declaredlib", MODELS + "declaredlib = declares:Net", ["The framework"]),
    "typo": (good(), MODELS + "goodlibb = typo:Net", ["no module `goodlibb`"]),
    "deeptypo": (good(), MODELS + "goodlib.nn = deeptypo:Net", ["no module `goodlib.nn` can be"]),
    "group": (good(), "[solstice.model.v1]\ncsv = group:Net", ['"solstice.model.v1" is not one']),
    "dotted": (good(), "[solstice.models.v1.0]\ncsv = dotted:Net", ['"solstice.models.v1.0"']),
    "older": (good(), "[solstice.models.v0]\nwave = older:Net", ["made for adapter protocol v0"]),
    "same-a": (good("Same"), MODELS + "wave = same_a:Same", ["solstice.compat.Same is claimed by"]),
    "same-b": (good("Same"), MODELS + "zlib = same_b:Same", ["same-a 0.1", "same-b 0.1"]),
    "ours": (good("EquinoxModel"), MODELS + "bz2 = ours:EquinoxModel", ["is taken by Solst"]),
    "thief": (good("Thief"), MODELS + "equinox = thief:Thief", ["belongs to solstice-core"]),
    "mole": (good("Mole"), MODELS + "equinox.nn = mole:Mole", ["belongs to solstice-core"]),
}

CURES = {
    "nomodule": "pip install --force-reinstall nomodule",
    "bare": "often: pip install barelib",
    "wrapped": "often: pip install wrappedlib",
    "needs": "often: pip install neededlib",
    "declares": "pip install dm-declaredlib",
    "older": "pip install --upgrade older",
    "same-a": "Uninstall all but one",
    "same-b": "Uninstall all but one",
    "ours": "from ours import EquinoxModel",
    "thief": 'solstice.compat.register("equinox", solstice.compat.Thief)',
    "mole": 'solstice.compat.register("equinox", solstice.compat.Mole)',
}
"""Of the others: pip install --upgrade them, or pip uninstall them."""


def write_bad(folder):
    requires = {"declares": "dm-declaredlib>=1"}
    return [
        write_wheel(folder, name, source, points=points, requires=requires.get(name, ""))
        for name, (source, points, _) in BAD.items()
    ]


def write_good(folder):
    points = MODELS + "zipfile = both:Both\n[solstice.models.v2]\nzipfile = both:Both2"
    return [
        write_wheel(folder, "goodlib", "class Net:\n    pass\n"),
        write_wheel(folder, "good", good("Good"), [("solstice.models.v1", "goodlib", "Good")]),
        write_wheel(folder, "both", good("Both"), points=points),
    ]


def plant_by_hand(site):
    """What pip does not install: metadata without a name, a line without "=", another encoding."""

    def plant(name, points, metadata=""):
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_bytes(points)
        (info / "METADATA").write_text(metadata)

    plant("nameless", b"[solstice.models.v1]\ncsv = nameless:Net\n")
    plant("lonely", b"[solstice.models.v1]\nlonely\n", "Name: lonely\nVersion: 1.0\n")
    plant("latin", b"[solstice.models.v1]\ncsv = caf\xe9:Net\n", "Name: latin\nVersion: 1.0\n")
    plant("elsewhere", b"[console_scripts]\nbroken\n", "Name: elsewhere\nVersion: 1.0\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder, wheels = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("wheels")
    install([*write_bad(wheels), *write_good(wheels)], folder)
    return folder


def run(site, *arguments):
    paths = [str(site), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def report(site):
    return run(site, "-m", "solstice")


def rows_of(report):
    """The row of each distribution, with the lines that continue it."""
    text = report.stdout.partition("adapters:\n")[2].rpartition("\n")[0]
    found = re.split(r"^  (?! )", text, flags=re.MULTILINE)[1:]
    return {row.partition("), ")[2].partition(" ")[0]: row for row in found}


@pytest.fixture(scope="module")
def rows(report):
    return rows_of(report)


def test_the_doctor_survives_and_its_exit_code_says_what_it_found(report):
    assert report.stderr == ""
    assert report.returncode == 1
    assert f"{len(BAD)} of " in report.stdout.splitlines()[-1]


@pytest.mark.parametrize("name", BAD)
def test_each_bad_distribution_is_named_with_its_cure(rows, name):
    text = rows[name]
    for words in BAD[name][2]:
        assert words in text
    usual = f"pip install --upgrade {name}, or do without it: pip uninstall {name}"
    assert CURES.get(name, usual) in text


def test_distributions_that_pip_does_not_install(tmp_path):
    """JAX itself finds no device among these, since `entry_points()` fails; the doctor goes on."""
    plant_by_hand(tmp_path)
    report = run(tmp_path, "-m", "solstice")
    assert (report.returncode, report.stderr) == (1, "")
    assert "3 of " in report.stdout.splitlines()[-1]
    rows = rows_of(report)
    assert "`lonely = ` does not name a class" in rows["lonely"]
    assert "pip uninstall lonely" in rows["lonely"]
    assert "entry_points.txt cannot be read: UnicodeDecodeError" in rows["latin"]
    assert "pip uninstall latin" in rows["latin"]
    assert f"{tmp_path}/nameless-1.0.dist-info" in rows["a"]
    assert "To fix: delete that folder" in rows["a"]
    assert "elsewhere" not in report.stdout  # is not about Solstice


def test_those_that_work_are_ok(rows):
    assert rows["good"] == "Good wraps goodlib (models, protocol v1), good 0.1: ok\n"
    assert rows["solstice-core"].endswith(": ok\n")


def test_versions_are_those_of_the_frameworks_that_are_wrapped(report):
    versions = report.stdout.partition("devices:")[0].splitlines()
    assert "goodlib 0.1" in versions
    assert len(versions) == len(set(versions))
    assert not any("csv" in line or "not installed" in line for line in versions)


PROGRAM = """
import json, sys
import equinox as eqx, jax, goodlib
from solstice import compat

found = {
    "dir": dir(compat),
    "unknown": hasattr(compat, "NoSuchModel"),
    "good": type(compat.as_model(goodlib.Net())).__name__,
    "equinox": type(compat.as_model(eqx.nn.Linear(2, 3, key=jax.random.key(0)))).__name__,
    "by name": compat.Good.__name__ + compat.Both.__name__,
}
found["imported"] = sorted({*sys.argv[1:], "both"} & {*sys.modules})
found["errors"] = []
for name in ["Same", "Nett"]:
    try:
        getattr(compat, name)
    except compat.AdapterError as error:
        found["errors"].append(str(error))
found["broken"] = {info.distribution: info.is_broken for info in compat.adapters()}
print(json.dumps(found))
"""


def test_every_other_adapter_survives(site):
    done = run(site, "-c", textwrap.dedent(PROGRAM), *(name.replace("-", "_") for name in BAD))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"Good", "Both", "EquinoxModel", "as_model"} <= set(found["dir"])
    assert "" not in found["dir"]
    assert found["unknown"] is False
    assert (found["good"], found["equinox"]) == ("Good", "EquinoxModel")
    assert found["by name"] == "GoodBoth"
    assert found["imported"] == ["both"]
    same, noattr = found["errors"]
    assert "claimed by 2 installed adapters" in same
    assert "noattr 0.1" in noattr
    broken = found["broken"]
    assert all(broken[f"{name} 0.1"] for name in BAD)
    assert not broken["good 0.1"]
    assert not broken["both 0.1"]


def test_help(tmp_path):
    done = run(tmp_path, "-m", "solstice", "--help")
    assert done.returncode == 0
    assert "The exit code is 1 if an adapter is broken" in done.stdout


HANGS = """
import threading
try:
    print("hanging", flush=True)
    threading.Event().wait()
except BaseException:
    pass
"""

FOREGROUND = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores Ctrl-C
runpy.run_module("solstice", run_name="__main__")
"""


def test_ctrl_c_of_the_user_ends_the_doctor_at_the_adapter_that_hangs(tmp_path):
    points = MODELS + "csv = hangs:Hangs"
    install([write_wheel(tmp_path, "hangs", HANGS, points=points)], tmp_path / "site")
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", FOREGROUND],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    seen = b""
    while not seen.endswith(b"hanging\n"):
        character = process.stdout.read(1)
        assert character, process.communicate()
        seen += character
    assert b"hangs 0.1: " in seen  # who hangs is named before the import
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate()
    assert process.returncode == -signal.SIGINT
    assert b"KeyboardInterrupt" in errors
    assert b"wraps" not in rest
