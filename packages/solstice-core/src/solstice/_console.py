"""Text for people, on whatever stream there is: what is shown must never end a run."""

import sys
import warnings
from contextlib import suppress
from typing import Any


def say(text: str) -> None:
    """`say("nothing was profiled")`: a line on standard error, after the name of the library."""
    write_line(f"solstice: {text}", sys.stderr)


def write_line(text: str, stream: Any) -> None:
    """`write_line("epoch 1", sys.stdout)`: a line, where it can be written.

    Args:
        text: the line.
        stream: anything with a `write`. None, as `sys.stderr` under `pythonw`, a closed stream and
            a terminal that is gone show nothing.
    """
    if stream is None:
        return
    with suppress(OSError, ValueError):
        stream.write(f"{encodable(text, stream)}\n")
        with suppress(AttributeError):
            stream.flush()


def warn(message: str, stacklevel: int) -> None:
    """`warnings.warn`, which raises where standard error is closed.

    Args:
        message: what to say.
        stacklevel: as Python has it, of the function that calls this one.
    """
    with suppress(ValueError):
        warnings.warn(message, stacklevel=stacklevel + 1)


def encodable(text: str, stream: Any) -> str:
    """The text, with escapes for characters that the encoding of a stream does not have."""
    encoding = getattr(stream, "encoding", None)
    if not isinstance(encoding, str):
        return text
    with suppress(LookupError):
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def is_terminal(stream: Any) -> bool:
    """Whether it says so: a stream of the user's own need not have `isatty`."""
    try:
        return bool(stream.isatty())
    except (AttributeError, OSError, ValueError):
        return False
