"""Checks that a checkpoint loads into an adapter that is built again, also in a new process."""

import functools
import json
import multiprocessing
import sys
import tempfile
from abc import abstractmethod
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import pytest

from solstice import _tree
from solstice._stored import described
from solstice.testing._resume import importable
from solstice.testing._suite import Conformance

_TIMEOUT = 300
_CURE = (
    "The repr of an adapter and the paths of its trees are part of a checkpoint, and must be the "
    "same in each object and each process: keep counters, addresses and sets out of them "
    "(`field(repr=False)` in a dataclass)"
)


class Rebuilt(Conformance, is_suite=True):
    """Checks of both suites for an adapter that is built more than once."""

    _rests: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def _kept(self) -> dict[str, Any]:
        """A newly built adapter, and the shapes of its saved values, by name."""

    def test_a_checkpoint_loads_into_another_object(self) -> None:
        """A checkpoint of one adapter loads into another that is built in the same way."""
        self.need(*self._rests)
        first = self._kept()  # kept alive, so that the other has another address
        _compare(in_words(first), in_words(self._kept()), "in the same process")

    def test_a_checkpoint_loads_in_a_new_process(self) -> None:
        """A checkpoint loads into an adapter that is built in another process."""
        self.need("test_a_checkpoint_loads_into_another_object")
        there = _words_of_module(_importable_module(type(self))).get(type(self).__name__)
        if there is None:
            pytest.skip("it could not be built in another process")
        _compare(in_words(self._kept()), there, "in another process")


def in_words(tree: Mapping[str, Any]) -> dict[str, str]:
    """The description of a tree by path, which a checkpoint compares on loading."""
    leaves = _tree.leaves_by_path(tree)
    shapes = {path: f"{x.dtype}{list(x.shape)}" for path, x in leaves if hasattr(x, "shape")}
    return {**described(tree), **shapes}


def _compare(one: Mapping[str, str], other: Mapping[str, str], where: str) -> None:
    for path in {**one, **other}:
        was, now = one.get(path, "not there"), other.get(path, "not there")
        assert was == now, (
            f"checkpoint: `{path}` is {was}, and {now} where the adapter is built again {where}: "
            f"a checkpoint of the one does not load into the other. {_CURE}"
        )


def _importable_module(suite: type) -> str:
    """The module of a suite; skips if another process cannot import the suite from it."""
    name = suite.__module__
    if name == "__main__" or getattr(sys.modules.get(name), suite.__name__, None) is not suite:
        pytest.skip(f"another process cannot import {suite.__qualname__}: put it in a module")
    return name


@functools.cache
def _words_of_module(module: str) -> dict[str, dict[str, str]]:
    """The descriptions of all suites of a module by name, from one new process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "words.json"
        # Not a fork, which would copy the locks that JAX's threads hold.
        process = multiprocessing.get_context("spawn").Process(target=_write, args=(module, file))
        with importable(module), _on_the_cpu():
            process.start()
        process.join(_TIMEOUT)
        process.kill()
        return json.loads(file.read_text()) if file.exists() else {}


@contextmanager
def _on_the_cpu() -> Generator[None, None, None]:
    """New processes use the CPU and another hash seed, to find a repr that depends on hashes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("PYTHONHASHSEED", "1")
        yield


def _write(module: str, file: Path) -> None:
    """Runs in the new process: writes the descriptions of a module's suites."""
    suites = vars(import_module(module)).items()
    words = {
        name: _words_of(suite)
        for name, suite in suites
        if isinstance(suite, type) and issubclass(suite, Rebuilt) and suite.__module__ == module
    }
    file.write_text(json.dumps(words))


def _words_of(suite: type[Rebuilt]) -> dict[str, str] | None:
    try:
        return in_words(suite()._kept())  # pyright: ignore[reportPrivateUsage]
    except Exception:
        return None
