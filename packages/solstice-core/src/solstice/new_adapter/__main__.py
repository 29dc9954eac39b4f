"""Command line of `python -m solstice.new_adapter`."""

import argparse
import sys
from pathlib import Path

from solstice.new_adapter import write_package


def main() -> int:
    """Writes the package, and prints the next commands."""
    parser = argparse.ArgumentParser(
        prog="python -m solstice.new_adapter",
        description="Write an adapter package for a framework, with tests that pass.",
    )
    parser.add_argument("name", help="the framework's import name, as in `toynet`")
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="parent folder; the current one by default"
    )
    options = parser.parse_args()
    try:
        package = write_package(options.name, options.folder)
    except FileExistsError as error:
        print(f"{error.filename} exists already; nothing was written", file=sys.stderr)
        return 1
    except ValueError as error:
        parser.error(str(error))
    print(f"wrote {package}. Next:\n  cd {package}\n  pip install -e '.[test]'\n  pytest")
    return 0


if __name__ == "__main__":
    sys.exit(main())
