"""A pytest plugin that runs the Python code blocks of Markdown pages, as `nox -s docs` does.

The blocks of one page share their names, from top to bottom. A page is run in a folder of its own,
so that what it writes stays there. A block that needs what is not installed stands behind a line
`<!--- skip: next if(...) -->`.
"""

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser


def _setup(namespace: dict[str, Any]) -> None:
    folder = tempfile.TemporaryDirectory()
    namespace["_folder"], namespace["_from"] = folder, os.getcwd()
    namespace["installed"] = lambda name: importlib.util.find_spec(name) is not None
    os.chdir(folder.name)


def _teardown(namespace: dict[str, Any]) -> None:
    os.chdir(namespace["_from"])
    namespace["_folder"].cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["*.md"],
    path=str(Path(__file__).parent.parent),
    setup=_setup,
    teardown=_teardown,
).pytest()
