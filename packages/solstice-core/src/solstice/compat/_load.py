"""Import of adapters: any error becomes an AdapterError with the package and a fix."""

import re
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from importlib.util import find_spec
from itertools import islice
from types import FrameType
from typing import Any, TypeVar

from solstice.compat._claims import Claim, cure

T = TypeVar("T")


class AdapterError(ImportError):
    """An adapter is not installed, cannot be imported, is ambiguous, or has another version.

    The message names the distribution and the fix.
    """


def load(claim: Claim) -> type[Any]:
    """Imports the adapter class.

    Raises:
        AdapterError: it cannot be imported.
    """
    if claim.fault:
        raise AdapterError(f"{claim.distribution} is installed and cannot be used: {claim.fault}")
    return call(claim, claim.load, "could not be imported")


def load_layout(claim: Claim) -> object:
    """Imports a layout.

    Raises:
        AdapterError: it cannot be imported.
    """
    return load(claim)


def call(claim: Claim, function: Callable[[], T], failed: str) -> T:
    """Calls code of an adapter's package; any exception of it becomes an AdapterError.

    This includes SystemExit and KeyboardInterrupt that the package raises itself, but not those of
    a signal handler: the user's Ctrl-C ends the program even if the package catches it.
    """
    with _signals_noted() as noted:
        try:
            result = function()
        except BaseException as error:
            if noted:
                raise noted[0] from None
            raise AdapterError(
                f"the {_noun(claim)} {claim.value!r} of {claim.distribution} is installed but "
                f"{failed}: {_words(error)}\n{_cure_of(claim, error)}"
            ) from error
        if noted:
            raise noted[0]
        return result


def _noun(claim: Claim) -> str:
    return "layout" if claim.kind == "layout" else "adapter"


@contextmanager
def _signals_noted() -> Generator[list[BaseException], None, None]:
    """Records exceptions of Python signal handlers, which run only in the main thread."""
    noted: list[BaseException] = []
    before = _python_handlers() if threading.current_thread() is threading.main_thread() else {}

    def note(number: int, frame: FrameType | None) -> None:
        try:
            before[number](number, frame)
        except BaseException as error:
            noted.append(error)
            raise

    try:
        for number in before:
            signal.signal(number, note)
        yield noted
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is note:  # otherwise the package has set its own handler
                signal.signal(number, handler)


def _python_handlers() -> dict[int, Callable[[int, FrameType | None], Any]]:
    handlers = {int(number): signal.getsignal(number) for number in signal.valid_signals()}
    return {number: handler for number, handler in handlers.items() if callable(handler)}


def is_found(module: str) -> bool:
    """Whether a module of this name exists; `importlib` imports its parents to find out."""
    if not all(part.isidentifier() for part in module.split(".")):
        return False
    try:
        return module in sys.modules or find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # a parent is not a package, or has no spec
        return False


def prefix_fault(claim: Claim) -> str:
    """The error message for a claim whose prefix is not an existing module."""
    framework = claim.prefix.partition(".")[0]
    if is_found(framework):
        return f"no module `{claim.prefix}` can be found. {cure(claim.package)}"
    return (
        f"no module `{framework}`, which it wraps, can be found. {_install(claim, framework)}. "
        f"If its entry point misspells the prefix: {cure(claim.package)}"
    )


def _cure_of(claim: Claim, error: BaseException) -> str:
    module, framework = claim.value.partition(":")[0].strip(), claim.prefix.partition(".")[0]
    # A limit, because causes may form a cycle.
    failed = next((e for e in islice(_chain(error), 100) if isinstance(e, ImportError)), None)
    missing = (failed.name or "") if isinstance(failed, ModuleNotFoundError) else ""
    if missing and f"{module}.".startswith(f"{missing}."):
        return cure(claim.package, "--force-reinstall")
    if failed and not is_found(framework):
        return f"The framework that it wraps is not installed. {_install(claim, framework)}"
    if missing and not is_found(missing.partition(".")[0]):
        return _install(claim, missing.partition(".")[0])
    return cure(claim.package)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _install(claim: Claim, module: str) -> str:
    """The command to install a module: the missing requirements of the package, or its name."""
    requirements = _not_installed(claim.package)
    if requirements:
        return f"To fix: pip install {' '.join(requirements)}"
    return f"To fix: install what provides `{module}` (often: pip install {module})"


def _not_installed(package: str) -> list[str]:
    try:
        lines = distribution(package).requires or []
    except Exception:  # no name, or malformed metadata
        return []
    # A requirement with a marker may belong to an extra or another Python version.
    names = [re.match(r"[\w.-]*", line) for line in lines if ";" not in line]
    return [name[0] for name in names if name and name[0] and not _is_installed(name[0])]


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except Exception:
        return False
    return True


def _words(error: BaseException) -> str:
    try:
        text = str(error)  # may fail itself
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
