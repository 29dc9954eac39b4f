"""Pace: the number of steps per call, adapted to the time of earlier calls."""

SECONDS_PER_CALL = 0.25
"""The longest time of a call, because Ctrl-C, signals and callbacks wait for its end."""

_GROWTH = 8
"""The largest factor by which the steps per call grow from one call to the next."""


class Pace:
    """Starts with short calls, and lengthens them as far as the measured time allows.

    The time of a step does not always follow from its program: waiting for memory or for the host,
    and loops of unknown length, take longer than `Cost` says. A shorter call is the same program
    with a smaller trip count, so this changes no bits of the result.

    Args:
        most: the most steps in a call.
        first: the most steps in the first call.

    Attributes:
        room: the most steps in the next call.
    """

    def __init__(self, most: int, first: int) -> None:
        self._most = most
        self.room = first

    def learn(self, steps: int, seconds: float, *, was_awaited: bool) -> None:
        """Adapts to a call of `steps` steps.

        `seconds` is an upper bound if nothing waited for its end, so it then only lengthens calls.
        """
        fits = int(steps * min(SECONDS_PER_CALL / max(seconds, 1e-9), _GROWTH))
        is_slow = was_awaited and seconds > SECONDS_PER_CALL
        if is_slow or fits > self.room:
            self.room = min(max(fits, 1), self._most)
