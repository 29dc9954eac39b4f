"""Text on the terminal; a closed or limited stream never ends a run."""

import sys
import warnings
from contextlib import suppress
from typing import Any


def say(text: str) -> None:
    """`say("nothing was profiled")`: print "solstice: nothing was profiled" to standard error."""
    write_line(f"solstice: {text}", sys.stderr)


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
        stacklevel: as in `warnings.warn`, counted from the calling function.
    """
    with suppress(ValueError):
        warnings.warn(message, stacklevel=stacklevel + 1)


def encodable(text: str, stream: Any) -> str:
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
