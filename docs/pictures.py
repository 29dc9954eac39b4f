"""Make the pictures of the site, of real runs: `python docs/pictures.py`, into docs/pictures/.

The chart of the benchmarks is drawn from the tables of their page.

The page of TensorBoard is taken by Chromium, if there is one: on Debian, `apt install chromium`.
"""

import io
import os
import pty
import shutil
import socket
import subprocess
import sys
import tempfile
import termios
import time
import urllib.request
from pathlib import Path

import pyte
import rich.console
import rich.text
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent / "pictures"

RUN = """
import sys
import equinox as eqx, jax, numpy as np, optax, solstice
from sklearn.datasets import load_digits
from solstice import callbacks, loggers

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
train_ds = solstice.data.batches((images[:1500], labels[:1500]), 32, shuffle=True, seed=0)
val_ds = solstice.data.batches((images[1500:], labels[1500:]), 64)
net = eqx.nn.MLP(64, 10, 64, depth=1, key=jax.random.key(0))

def make(optimizer):
    return solstice.ClassificationExperiment(net, optimizer, num_classes=10)
"""

BARS = """
import time

class Slow(solstice.Callback):  # so that the picture shows an epoch that goes on
    every = None

    def on_call_end(self, record):
        if record.mode == "train" and record.epoch == 2:
            time.sleep(0.6)

bar = callbacks.ProgressBar(only=("loss", "accuracy"))
trainer = solstice.Trainer([bar, Slow()], steps_per_call=12)
trainer.fit(make(optax.adam(3e-3)), train_ds, val_ds, num_epochs=4)
"""

PLOTS = """
folder = sys.argv[1]
found = solstice.find_learning_rate(
    make(optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)), train_ds
)
found.plot(f"{folder}/rates.png")
schedule = optax.cosine_decay_schedule(1e-2, 470)
optimizer = solstice.compat.track_norms(optax.adam(schedule))
board = loggers.TensorBoard(f"{folder}/../board", every=5, hparams={"lr": 1e-2}, histograms=1)
monitors = [callbacks.LearningRate(schedule), callbacks.NormMonitor(depth=0), board]
adam = solstice.Trainer(monitors)
adam.fit(make(optimizer), train_ds, val_ds, num_epochs=10)
adam.history.plot(
    f"{folder}/curves.png", only=["loss", "accuracy", "lr", "grad_norm", "param_norm"]
)
sgd = solstice.Trainer()
sgd.fit(make(optax.sgd(0.1)), train_ds, val_ds, num_epochs=10)
solstice.compare(
    {"adam": adam, "sgd": sgd}, f"{folder}/compared.png", only=["loss", "accuracy"]
)

def rated(rate):
    return make(optax.adam(rate))

population = solstice.Trainer()
population.fit(
    solstice.Population(rated, rate=np.geomspace(1e-4, 0.3, 16)), train_ds, val_ds, num_epochs=10
)
population.history.plot(f"{folder}/fan.png", only=["loss", "accuracy"])
"""

SUMMARY = """
exp = make(solstice.compat.freeze(optax.adam(3e-3), "layers/0/*"))
print(solstice.summary(exp, (images[:32], labels[:32])))
"""

PLAN = """
print(solstice.plan(make(optax.adam(3e-3)), (images[:32], labels[:32])))
"""


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "pictures"
        made.mkdir()
        subprocess.run([sys.executable, "-c", RUN + PLOTS, str(made)], check=True)
        for picture in made.iterdir():
            shutil.copy(picture, FOLDER)
        tensorboard(Path(scratch) / "board", FOLDER / "tensorboard.png")
    for columns in (80, 140):
        terminal(RUN + BARS, columns, FOLDER / f"progress-{columns}.svg")
    tables, chart = FOLDER.parent / "benchmarks.md", FOLDER.parent / "benchmarks.png"
    draw = FOLDER.parents[1] / "tests" / "benchmarks" / "chart.py"
    subprocess.run([sys.executable, str(draw), str(tables), str(chart)], check=True)
    printed(RUN + SUMMARY, FOLDER / "summary.svg")
    printed(RUN + PLAN, FOLDER / "plan.svg")
    print(*sorted(path.name for path in FOLDER.iterdir()))


def terminal(code: str, columns: int, path: Path) -> None:
    """What a terminal shows of a program in its third epoch."""
    screen = pyte.Screen(columns, 12)
    stream = pyte.ByteStream(screen)
    child, master = pty.fork()
    if child == 0:
        termios.tcsetwinsize(0, (12, columns))
        os.execv(sys.executable, [sys.executable, "-c", code])
    best: list[str] = []
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:  # the program has ended
            break
        if not data:
            break
        stream.feed(data)
        lines = [line.rstrip() for line in screen.display]
        if any("epoch 3/4:" in line and " 24/47" in line for line in lines):
            best = lines  # of the epoch in which it is slow
    if os.waitpid(child, 0)[1] != 0 or not best:
        raise RuntimeError("the bars were not seen: " + "\n".join(screen.display))
    write_svg([line for line in best if line], columns, path)


def printed(code: str, path: Path) -> None:
    """What a program prints."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    write_svg(lines, 92, path)


def write_svg(lines: list[str], columns: int, path: Path) -> None:
    console = rich.console.Console(
        width=columns, record=True, file=io.StringIO(), force_terminal=True
    )
    console.print(rich.text.Text("\n".join(lines)))
    path.write_text(console.export_svg(title="python train.py"))


def tensorboard(board: Path, path: Path) -> None:
    """The page of TensorBoard, by a browser without a screen."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        placeholder(path)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["tensorboard", "--logdir", str(board), "--port", str(port), "--host", "127.0.0.1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}/"
        wait_for(f"{address}data/runs")
        with tempfile.TemporaryDirectory() as profile:
            subprocess.run(
                [
                    *[browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"],
                    *["--disable-background-networking", "--disable-component-update"],
                    *["--hide-scrollbars", f"--user-data-dir={profile}"],
                    *["--window-size=1400,900", "--virtual-time-budget=20000"],
                    *[f"--screenshot={path}", f"{address}?darkMode=false#scalars"],
                ],
                check=True,
                capture_output=True,
                timeout=120,
            )
    finally:
        server.terminate()
        server.wait()


def wait_for(address: str) -> None:
    for _ in range(120):
        try:
            with urllib.request.urlopen(address) as answer:
                if b"." in answer.read():
                    return
        except OSError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"nothing answers at {address}")


def placeholder(path: Path) -> None:
    figure = Figure(figsize=(8, 1))
    figure.text(
        0.5, 0.5, "a page of TensorBoard: pictured where Chromium is installed", ha="center"
    )
    figure.savefig(path)


if __name__ == "__main__":
    main()
