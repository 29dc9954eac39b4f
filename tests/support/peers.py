"""Real processes, connected over loopback, for tests of several.

A program is Python text. It may use `me` and `count`, `connect()`, and `show(name, value)`, whose
values come back by process.
"""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

_HEAD = """
import json, os, sys, time
me, count, port = map(int, sys.argv[1:])
import solstice
from solstice import distributed

def show(name, value):
    # In one piece, because threads of JAX write too.
    sys.stdout.write(f"\\nSHOWN {json.dumps([name, value])}\\n")
    sys.stdout.flush()

def connect(timeout=30):
    distributed.initialize(f"127.0.0.1:{port}", count, me, timeout=timeout)

def error_of(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except Exception as error:
        return [type(error).__name__, str(error)]
"""


@dataclass
class Ended:
    """One process that has ended.

    Attributes:
        code: its exit code.
        output: all that it has printed.
        at: the time when it had ended.
        shown: the values that it has shown.
    """

    code: int
    output: str
    at: float
    shown: dict[str, Any] = field(default_factory=dict)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run(program: str, count: int = 2, timeout: float = 60, **env: str) -> list[Ended]:
    """Runs the program in `count` processes; kills those left after the timeout."""
    command = [sys.executable, "-c", _HEAD + textwrap.dedent(program)]
    port = free_port()
    started = [
        subprocess.Popen(
            [*command, str(i), str(count), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **env},
        )
        for i in range(count)
    ]
    try:
        # All at once: a process waits while nobody reads what it prints.
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(partial(_ended, timeout=timeout), started))
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()  # JAX swallows SIGTERM
                process.communicate()


def _ended(process: subprocess.Popen[str], timeout: float) -> Ended:
    output = process.communicate(timeout=timeout)[0]
    lines = [line for line in output.splitlines() if line.startswith("SHOWN ")]
    return Ended(
        process.returncode, output, time.time(), dict(json.loads(line[6:]) for line in lines)
    )
