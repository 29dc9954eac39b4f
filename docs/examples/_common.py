"""What the examples share: `--out`, a verdict, and a place for pictures."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")


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
    import numpy as np

    order = np.random.default_rng(0).permutation(len(arrays[0]))
    shuffled = [array[order] for array in arrays]
    return tuple(a[:-test] for a in shuffled), tuple(a[-test:] for a in shuffled)


def grid(images: Any, rows: int) -> Any:
    """Images of [n, height, width] as one, `rows` of them below each other, a line between."""
    import numpy as np

    images = np.pad(images, [(0, 0), (1, 1), (1, 1)], constant_values=0.3)
    n, height, width = images.shape
    tiled = images.reshape(rows, n // rows, height, width).transpose(0, 2, 1, 3)
    return tiled.reshape(rows * height, -1)


def verdict(what: str, reached: float, asked: float, *, at_most: bool = False) -> None:
    """Says what was reached beside what was asked, and exits with 1 if that was missed."""
    sign = "at most" if at_most else "at least"
    print(f"{what}: {reached:.4f} (asked: {sign} {asked:.4f})")
    if not (reached <= asked if at_most else reached >= asked):
        sys.exit(1)
