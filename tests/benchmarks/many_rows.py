"""`nox -s bench_many_rows`: shuffled batches of a mapped file of 10^10 rows (Linux).

The file is holes, which read as zeros, so it takes no room on the disk. Memory is the peak of the
resident memory of the process above that before the file is opened, pages of the file included.
"""

import argparse
import itertools
import mmap
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import solstice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10**10, help="in the file, of --bytes each")
    parser.add_argument("--bytes", type=int, default=1, help="in a row")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=1000, help="to read in sequence")
    parser.add_argument("--folder", help="where the file is made; a temporary one if left out")
    options = parser.parse_args()
    shape = options.rows, options.bytes
    list(solstice.data.batches(np.zeros(100), options.batch_size, shuffle=True))
    with sparse_file(options.folder, options.rows * options.bytes) as path:
        start_of_peak()
        before = megabytes("VmRSS")
        seconds = measured(path, shape, options.batch_size, options.batches)
        memory = megabytes("VmHWM") - before
    print(f"{options.rows:,} rows of {options.bytes} bytes, batches of {options.batch_size}")
    for name, took in seconds.items():
        print(f"{name:26}{1e3 * took:10.2f} ms")
    print(f"{'peak memory':26}{memory:10.2f} MB")


def measured(path: Path, shape: tuple[int, int], size: int, count: int) -> dict[str, float]:
    """The seconds of each part."""
    seconds: dict[str, float] = {}

    @contextmanager
    def clock(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - began

    with clock("the first batch"):
        rows = np.memmap(path, np.uint8, "r", shape=shape)
        data = solstice.data.batches(rows, size, shuffle=True, seed=0)
        batches = iter(data)
        next(batches)
    with clock("to the middle of epoch 7"):
        place = {"epoch": 7, "batch": len(data) // 2}
        batches.load_state_dict({**batches.state_dict(), **place})
        next(batches)
    with clock(f"{count:,} batches"):
        for batch in itertools.islice(batches, count):
            batch.sum()
    return seconds


@contextmanager
def sparse_file(folder: str | None, size: int) -> Iterator[Path]:
    """A file of zeros without blocks on the disk."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        path = Path(made) / "rows"
        with path.open("wb") as file:
            file.truncate(max(size, mmap.PAGESIZE))
        yield path


def start_of_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def megabytes(name: str) -> float:
    with open("/proc/self/status") as lines:
        return int(next(line.split()[1] for line in lines if line.startswith(name))) / 1e3


if __name__ == "__main__":
    main()
