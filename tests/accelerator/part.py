"""`python part.py A ROWS SECONDS [--small]`: one part of run.py, a JSON row a line into ROWS."""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = {"A": 20, "B32": 10, "B128": 5, "C": 2, "D": 2, "E": 6, "F-layers": 2}
"""Steps of an epoch if small."""


@dataclass(frozen=True)
class Task:
    """What a part is asked for, and where its rows go.

    Attributes:
        name: what is trained, as in "A".
        deadline: seconds of `time.monotonic()` at which it should be done.
    """

    name: str
    rows: Path
    deadline: float
    small: bool

    def add(self, what: str, **values: Any) -> None:
        """Adds a row, at once, since the process may be ended at any time."""
        print(f"    {what}: {values}", file=sys.stderr, flush=True)
        with self.rows.open("a") as file:
            file.write(json.dumps({"what": what, **values}) + "\n")

    def check(self, what: str, law: Callable[[], bool | str]) -> None:
        """Adds whether a law holds; a text says why it was not checked; an error says no."""
        try:
            found = law()
        except Exception as error:
            self.add(what, value="NO", holds=False, error=f"{type(error).__name__}: {error}"[:500])
            return
        if isinstance(found, str):
            self.add(what, value=found)
        else:
            self.add(what, value="yes" if found else "NO", holds=found)

    def workload(self, name: str) -> Any:
        """The workload, shorter if small."""
        import workloads

        return workloads.get(name, STEPS[name] if self.small else None)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part")
    parser.add_argument("rows", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    module, _, name = options.part.partition("-")
    if module not in ("device", "laws", "placement", "memory", "blocks", "torch"):
        module, name = "training", module
    deadline = time.monotonic() + 0.8 * options.seconds
    part = importlib.import_module({"torch": "peers", "memory": "peaks"}.get(module, module))
    part.run(Task(name, options.rows, deadline, options.small))


if __name__ == "__main__":
    main()
