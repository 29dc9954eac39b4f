"""`python -m solstice`: what is installed, to be pasted into a bug report."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import jax

from solstice import compat

_LIBRARIES = ["solstice-core", "jax", "jaxlib", "equinox", "numpy"]
_FRAMEWORKS = ["flax", "dm-haiku", "optax"]


def main() -> None:
    """Prints versions, devices and adapters."""
    argparse.ArgumentParser(prog="python -m solstice", description=__doc__).parse_args()
    print(f"Python {platform.python_version()} on {platform.platform()}")
    for name in [*_LIBRARIES, *_FRAMEWORKS]:
        print(f"{name} {_version(name)}")
    devices = cast("list[Any]", jax.devices())
    print("devices:", ", ".join(f"{d.platform}:{d.id} ({d.device_kind})" for d in devices))
    print("adapters:")
    for adapter in compat.adapters():
        print(f"  {adapter}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "is not installed"


if __name__ == "__main__":
    main()
