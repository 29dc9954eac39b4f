"""The part "device": the name of the card, and the versions of what is measured."""

from typing import Any

import jax
from results import machine


def run(task: Any) -> None:
    devices = jax.devices()
    task.add(f"{len(devices)} x {devices[0].device_kind}, {devices[0].platform}")
    for line in machine().splitlines():
        task.add(line)
