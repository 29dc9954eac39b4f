"""What one runs here: `nox -s quickstart`, `nox -s tests`, `nox -s matrix`; `nox -l` lists all.

The matrix is every Python below with every set of adapters below: core alone, each adapter alone
with core, and all together. A cell installs wheels, as a user would.
"""

import glob
import os
import shutil
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13"]
ADAPTERS = ["flax", "haiku", "stax", "optax"]
SETS = {"none": [], **{name: [name] for name in ADAPTERS}, "all": ADAPTERS}

TEST = ["pytest", "pytest-xdist", "hypothesis", "scikit-learn", "tqdm"]
PLOT = ["matplotlib", "tqdm", "scikit-learn"]

ROOT = Path(__file__).parent
DIST = ROOT / "dist"

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests", "docs"]

# pyenv puts shims on the PATH that fail for every Python that is not the chosen one, so that a
# Python which is installed looks missing. The real ones stand behind them.
_pyenv = os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))
_behind_the_shims = sorted(glob.glob(f"{_pyenv}/versions/3.*/bin"), reverse=True)
os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *_behind_the_shims])

# Compiled modules are kept: without them, importing JAX takes seconds in every process.
ENV = {
    "PYTHONDONTWRITEBYTECODE": "",
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "MPLBACKEND": "Agg",
}
# Tests compile much and compute little.
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def package(name: str) -> str:
    return f"./packages/solstice-{name}"


def install_all(session: nox.Session, *more: str) -> None:
    session.install(*map(package, ["core", *ADAPTERS]), *more)


@nox.session
def quickstart(session: nox.Session) -> None:
    """Train one classifier in five frameworks; `-- --dataset mnist` where the network allows."""
    more = ["tensorflow-datasets", "tensorflow-cpu", "importlib_resources"]
    install_all(session, *PLOT, *(more if "mnist" in session.posargs else []))
    session.run("python", "docs/examples/quickstart.py", *session.posargs, env=ENV)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the whole test suite on this Python, with every adapter; `-- ARGS` go to pytest."""
    install_all(session, *TEST, "grain")
    session.run("pytest", "-n", "2", *(session.posargs or ["tests"]), env=ENV)


@nox.session(python=PYTHONS, reuse_venv=False, requires=["build"])
@nox.parametrize("adapters", [nox.param(name, id=name) for name in SETS])
def matrix(session: nox.Session, adapters: str) -> None:
    """Run the tests of each set of adapters on each Python, from wheels."""
    names = SETS[adapters]
    session.install(*wheels("core", *names), *TEST)
    folders = [f"tests/{name}" for name in names]
    if len(names) == 1:  # what the core does alone is tested in the set "none"
        folders.append("tests/core/test_compat_registry.py")
    else:
        folders.append("tests/core")
    if names == ADAPTERS:
        folders.append("tests/matrix")
    session.run("pytest", "-q", "-n", "2", *folders, *session.posargs, env={**ENV, **QUICK})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format; `-- --fix` mends what can be."""
    session.install("ruff>=0.17,<0.18")
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", *(["--check"] if "--fix" not in session.posargs else []), ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types strictly, in the packages and as a user sees them."""
    install_all(session, "pyright[nodejs]==1.1.414", "tqdm")
    python = str(Path(session.bin) / "python")
    session.run("pyright", "--pythonpath", python)


@nox.session
def docs(session: nox.Session) -> None:
    """Run every code block of the README files and of docs/."""
    install_all(session, *TEST, *PLOT, "grain", "sybil>=10")
    pages = ["README.md", "docs", *map(str, ROOT.glob("packages/*/README.md"))]
    session.run("pytest", "-p", "run_code_blocks", *pages, env={**ENV, "PYTHONPATH": "docs"})


@nox.session
def build(session: nox.Session) -> None:
    """Build a wheel and an sdist of each package into dist/, and check their metadata."""
    session.install("build", "hatchling>=1.27", "twine")
    shutil.rmtree(DIST, ignore_errors=True)
    for name in ["core", *ADAPTERS]:
        session.run("python", "-m", "build", "-n", "-o", str(DIST), package(name), silent=True)
    session.run("twine", "check", "--strict", *map(str, DIST.iterdir()))


@nox.session
def tfds(session: nox.Session) -> None:
    """Train from TensorFlow Datasets: with tf.data, and without TensorFlow."""
    data = ["tensorflow-datasets", "array-record", "importlib_resources", "grain"]
    install_all(session, *TEST, *data)
    session.run("pytest", "tests/tfds", "-k", "without_tensorflow", env=ENV)
    session.install("tensorflow-cpu")
    session.run("pytest", "tests/tfds", "-k", "not without_tensorflow", env=ENV)


@nox.session(venv_backend="virtualenv")
def torch(session: nox.Session) -> None:
    """Train from a torch DataLoader (torch is a large download)."""
    install_all(session, *TEST, "torch==2.13.0")
    session.run("pytest", "tests/torch", env=ENV)


@nox.session(venv_backend="virtualenv")
def bench(session: nox.Session) -> None:
    """Write docs/benchmarks.md and .png; `-- --with-torch` adds PyTorch, the rest is for run.py."""
    more = ["torch==2.13.0", "lightning"] if "--with-torch" in session.posargs else []
    install_all(session, "optax", "flax", "keras", "matplotlib", "tqdm", *more)
    session.run("python", "tests/benchmarks/run.py", *session.posargs, env=ENV)


def wheels(*names: str) -> list[str]:
    """Wheels of these packages by path, so that no index is asked for a package of ours."""
    return [str(next(DIST.glob(f"solstice_{name}-*.whl"))) for name in names]
