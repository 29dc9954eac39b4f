"""What the examples share: `--out`, a split, claims with a verdict, and a grid of pictures."""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

import solstice


def folder(doc: str | None) -> Path:
    """Where to put the picture, from the command line."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    return out


def split(*arrays: Any, test: int) -> tuple[Any, Any]:
    """The arrays, shuffled alike: what to train on, and the last `test` to test with."""
    order = np.random.default_rng(0).permutation(len(arrays[0]))
    shuffled = [array[order] for array in arrays]
    return tuple(a[:-test] for a in shuffled), tuple(a[-test:] for a in shuffled)


def grid(images: Any, rows: int) -> Any:
    """Images of [n, height, width] as one, `rows` of them below each other, a line between."""
    images = np.pad(images, [(0, 0), (1, 1), (1, 1)], constant_values=0.3)
    n, height, width = images.shape
    tiled = images.reshape(rows, n // rows, height, width).transpose(0, 2, 1, 3)
    return tiled.reshape(rows * height, -1)


class Lines(solstice.Callback):
    """A line for every n-th epoch, for runs of hundreds: the progress bar writes one for each."""

    def __init__(self, every_epochs: int) -> None:
        self.every_epochs = every_epochs

    def on_epoch_end(self, record: solstice.Record) -> None:
        epoch = record.epoch + 1
        if record.mode == "train" and epoch % self.every_epochs == 0:
            values = "  ".join(f"{name} {value:.4f}" for name, value in record.metrics.items())
            print(f"epoch {epoch}/{record.num_epochs}  {values}", file=sys.stderr, flush=True)


def at_least(what: str, reached: float, asked: float) -> bool:
    """Says what was reached beside what was asked, and gives whether it was."""
    return _claim(what, reached, f"at least {asked:.4g}", reached >= asked)


def at_most(what: str, reached: float, asked: float) -> bool:
    """The same, where less is better."""
    return _claim(what, reached, f"at most {asked:.4g}", reached <= asked)


def _claim(what: str, reached: float, asked: str, holds: bool) -> bool:
    print(f"{what}: {reached:.4g} (asked: {asked}){'' if holds else ' MISSED'}", flush=True)
    return bool(holds)


def verdict(*claims: bool) -> None:
    """Exits with 1 unless all claims hold."""
    sys.exit(0 if all(claims) else 1)
