"""Messages to the user: the logger "solstice", warnings, and text on streams.

`say` logs the events of a run. `warn` is for what the user may want to change: a warning points to
a line, and a filter can make it an error. A closed or limited stream never ends a run.
"""

import logging
import os
import sys
import warnings
from contextlib import suppress
from typing import Any

from solstice import _service

_LOGGER = logging.getLogger("solstice")


class _Default(logging.Handler):
    """Prints to standard error, unless the user has configured a handler."""

    def emit(self, record: logging.LogRecord) -> None:
        others = [*_LOGGER.handlers, *(logging.root.handlers if _LOGGER.propagate else [])]
        if any(handler is not self for handler in others):
            return
        line = f"solstice: {record.getMessage()}"
        if record.levelno > logging.INFO and is_terminal(sys.stderr):
            line = f"\n{line}"  # below a progress bar
        try:
            write_line(line, sys.stderr)
        except RuntimeError:  # in a signal handler that came while a line was being written
            with suppress(OSError):
                os.write(2, f"{line}\n".encode())


_LOGGER.addHandler(_Default())
if _LOGGER.level == logging.NOTSET:  # else the user has set it before the import
    _LOGGER.setLevel(logging.INFO)


def say(text: str, level: int = logging.INFO) -> None:
    """`say("nothing was profiled")`: log an event of a run.

    Without other handlers, "solstice: nothing was profiled" is printed to standard error.
    """
    with suppress(OSError, ValueError):  # of `logging`, which reports errors to a closed stream
        _LOGGER.log(level, "%s", text, stacklevel=2)  # a text may have a `%`


def say_once(text: str) -> None:
    """`say` in the first process alone: an event that all processes of a run have."""
    if _service.process_index() == 0:
        say(text)


def write_line(text: str, stream: Any) -> None:
    """`write_line("epoch 1", sys.stdout)`: write a line, if the stream is open.

    Args:
        text: the line.
        stream: any object with `write`. None (`sys.stderr` under `pythonw`), a closed stream and a
            closed terminal show nothing.
    """
    if stream is None:
        return
    with suppress(OSError, ValueError):
        stream.write(f"{encodable(text, stream)}\n")
        with suppress(AttributeError):
            stream.flush()


def warn(message: str, stacklevel: int) -> None:
    """`warnings.warn`, without its ValueError if standard error is closed.

    Args:
        message: the text of the warning.
        stacklevel: as in `warnings.warn`, counted from the calling function, without the frames
            of decorators of Solstice, whose functions are named `keywords_checked`.
    """
    frame, level = sys._getframe(1), 1  # pyright: ignore[reportPrivateUsage]
    while frame is not None and level < stacklevel:
        frame = frame.f_back
        level += 1
        if frame is not None and frame.f_code.co_name == "keywords_checked":
            stacklevel += 1
    with suppress(ValueError):
        warnings.warn(message, stacklevel=stacklevel + 1)


def encodable(text: str, stream: object) -> str:
    """The text, with escapes for characters outside the encoding of a stream."""
    encoding = getattr(stream, "encoding", None)
    if not isinstance(encoding, str):
        return text
    with suppress(LookupError):
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal."""
    try:  # because a custom stream may have no `isatty`
        return bool(stream.isatty())
    except (AttributeError, OSError, ValueError):
        return False


class Text(str):
    """Text that a REPL and a notebook show without quotes and escapes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
