"""`python -m solstice`: print versions, devices and adapters, for a bug report.

The exit code is 1 if an adapter is broken.
"""

import argparse
import io
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import jax

from solstice.compat import frameworks, list_adapters

_LIBRARIES = ["solstice-core", "jax", "jaxlib", "equinox", "numpy"]


def main() -> int:
    """Print versions, devices and adapters. Returns the exit code: 1 if an adapter is broken."""
    argparse.ArgumentParser(prog="python -m solstice", description=__doc__).parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):  # messages of adapters may be in any alphabet
        sys.stdout.reconfigure(errors="backslashreplace")
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
