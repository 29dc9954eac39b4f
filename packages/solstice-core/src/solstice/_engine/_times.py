"""Times: the seconds of a training run, split into data, copies, calls and the device."""

from dataclasses import dataclass


@dataclass
class Times:
    """`record.times`: seconds of training since the start of the run, by activity.

    The object changes as the run continues: copy the numbers that you need. Callbacks and
    validation are not included. The device works while the host does other things, so `device` is
    only the time that the host waits. If it is near 0, the host is the slower of the two.

    Attributes:
        data: waiting for the data set.
        copy: copying batches into the staging buffers.
        dispatch: calling compiled programs, with their compilation.
        device: waiting for the device.
    """

    data: float = 0.0
    copy: float = 0.0
    dispatch: float = 0.0
    device: float = 0.0
