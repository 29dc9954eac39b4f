"""Where the time of a training run goes."""

from dataclasses import dataclass


@dataclass
class Times:
    """`record.times`: seconds of training since the run began, by what they were spent on.

    It goes on counting: take down what you need. What is not in it are callbacks and validation.
    The device works while the host does other things, so `device` is only what the host has
    waited for it: near 0, the host is the slower of the two.

    Attributes:
        data: waiting for the data set.
        copy: copying batches to where the device reads them.
        dispatch: calling compiled programs; their compilation too.
        device: waiting for the device.
    """

    data: float = 0.0
    copy: float = 0.0
    dispatch: float = 0.0
    device: float = 0.0
