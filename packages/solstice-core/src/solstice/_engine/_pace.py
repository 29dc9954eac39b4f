"""How many steps a call may run, by how long the calls before it took."""

SECONDS_PER_CALL = 0.25
"""What a call should take at most: Ctrl-C, a signal and a callback wait for its end."""

_GROWTH = 8
"""How many times as many steps a call may have as one that was short."""


class Pace:
    """Begins with short calls, and makes them as long as the steps turn out to allow.

    What a step costs cannot always be read from its program: what waits for memory or for the host,
    or repeats an unknown number of times, takes longer than it seems. A shorter call is the same
    program with a smaller trip count, which changes no bit.

    Args:
        most: the most steps in a call.
        first: the most in the first call.

    Attributes:
        room: the most steps in the next call.
    """

    def __init__(self, most: int, first: int) -> None:
        self._most = most
        self.room = first

    def learn(self, steps: int, seconds: float, *, was_awaited: bool) -> None:
        """Takes in that a call of so many steps took so long, or less if none awaited its end."""
        fits = int(steps * min(SECONDS_PER_CALL / max(seconds, 1e-9), _GROWTH))
        is_slow = was_awaited and seconds > SECONDS_PER_CALL
        if is_slow or fits > self.room:
            self.room = min(max(fits, 1), self._most)
