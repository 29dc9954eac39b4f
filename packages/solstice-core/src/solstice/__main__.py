"""`python -m solstice`: print versions, devices and adapters, for a bug report.

The exit code is 1 if an adapter is broken. The commands `runs`, `show` and `diff` print runs.
"""

import argparse
import io
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import jax

from solstice.checkpoint import CheckpointError
from solstice.compat import frameworks, list_adapters
from solstice.runs import described, diff, listing

_LIBRARIES = ["solstice-core", "jax", "jaxlib", "equinox", "numpy"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, by default the report. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m solstice", description=__doc__)
    parser.set_defaults(run=_report)
    commands = parser.add_subparsers(metavar="COMMAND")
    runs = commands.add_parser(
        "runs",
        help="print the runs in a folder",
        description="Print a table of the runs in a folder: their best metrics, how they ended, "
        "and the newest checkpoint, from which a run can be resumed.",
    )
    runs.add_argument("folder", nargs="?", default="runs", help='"runs" by default')
    runs.set_defaults(run=partial(_print, listing))
    show = commands.add_parser(
        "show", help="print one run", description="Print what run.json says about a run."
    )
    show.add_argument("folder", help='such as "runs/a"')
    show.set_defaults(run=partial(_print, described))
    parts = commands.add_parser(
        "diff",
        help="print the first step at which two runs part",
        description="Print what differs between two runs, and the first step at which they part. "
        "The exit code is 0 if all common steps are equal, 1 if they are not or if a trace is "
        "missing, and 2 for an error.",
    )
    parts.add_argument("one", help='such as "runs/a"')
    parts.add_argument("other", help='such as "runs/b"')
    parts.set_defaults(run=_diff)
    given = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names may be in any alphabet
        sys.stdout.reconfigure(errors="backslashreplace")
    return given.run(given)


_ERRORS = CheckpointError, ImportError, OSError, TypeError, ValueError


def _diff(given: argparse.Namespace) -> int:
    """Prints the comparison of two runs."""
    try:
        found = diff(given.one, given.other)
    except _ERRORS as error:
        print(f"python -m solstice: {error}", file=sys.stderr)
        return 2
    print(found)
    return 0 if found.is_equal else 1


def _print(make: Callable[[str], str], given: argparse.Namespace) -> int:
    try:
        print(make(given.folder))
    except _ERRORS as error:
        print(f"python -m solstice: {error}", file=sys.stderr)
        return 1
    return 0


def _report(given: argparse.Namespace) -> int:
    """Prints versions, devices and adapters."""
    del given
    print(f"Python {platform.python_version()} on {platform.platform()}")
    own = [f"{name} {_version(name)}" for name in _LIBRARIES]
    print("\n".join([*own, *(line for line in frameworks() if line not in own)]))
    print("devices:", _devices())
    print("adapters:")
    return list_adapters(lambda text: print(text, end="", flush=True))


def _devices() -> str:
    try:
        devices = cast("list[Any]", jax.devices())
    except Exception as error:  # of a driver, or of metadata that breaks JAX's plugin search
        return f"none; {type(error).__name__}: {error}"
    return ", ".join(f"{d.platform}:{d.id} ({d.device_kind})" for d in devices)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "is not installed"


if __name__ == "__main__":
    sys.exit(main())
