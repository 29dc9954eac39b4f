"""`nox -s bench_adapters`: what 50 installed adapter packages cost.

New processes import Solstice and wrap a model, with the packages on their path and without them in
turn; printed are the medians in milliseconds. `import jax, equinox` is outside the clock.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "support"))

from wheels import install, write_wheel  # noqa: E402, it is found by the line above

PACKAGES, ROUNDS = 50, 20

MODEL = """
class Model{index}:
    def __init__(self, net):
        self.net = net
    def init(self, key, x, /):
        return {{}}, {{}}
    def forward(self, params, state, x, /, *, train, key=None):
        return x, state
"""

PROGRAM = """
import json, time
import equinox as eqx, jax
module = eqx.nn.Linear(2, 3, key=jax.random.key(0))
start = time.perf_counter()
import solstice
imported = time.perf_counter()
solstice.compat.as_model(module)
wrapped = time.perf_counter()
print(json.dumps({
    "import solstice": 1000 * (imported - start),
    "the first as_model": 1000 * (wrapped - imported),
}))
"""


def measure(path: str) -> dict[str, float]:
    """The times of one process, in milliseconds."""
    command = [sys.executable, "-c", PROGRAM]
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        wheels, site = Path(folder, "wheels"), Path(folder, "site")
        wheels.mkdir()
        install([fake(wheels, index) for index in range(PACKAGES)], site)
        paths = {"without": "", "with": str(site)}
        times: dict[str, list[dict[str, float]]] = {name: [] for name in paths}
        for index in range(ROUNDS + 1):
            for name, path in paths.items():
                result = measure(path)
                if index > 0:  # the first warms up
                    times[name].append(result)
    print(f"milliseconds, medians of {ROUNDS} processes; {PACKAGES} packages")
    for what in times["with"][0]:
        without, with_them = (
            statistics.median(result[what] for result in times[name])
            for name in ("without", "with")
        )
        print(
            f"{what:20} {without:6.1f} without, {with_them:6.1f} with: {with_them - without:+.1f}"
        )


def fake(folder: Path, index: int) -> Path:
    claim = "solstice.models.v1", f"framework{index}", f"Model{index}"
    return write_wheel(folder, f"fake{index}", MODEL.format(index=index), [claim])


if __name__ == "__main__":
    main()
