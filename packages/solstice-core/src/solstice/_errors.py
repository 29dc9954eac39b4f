"""The exceptions of Solstice."""


class DataError(ValueError):
    """A data set or a batch cannot be used: it is empty, exhausted, or does not fit the step."""


class ExperimentError(TypeError):
    """An Experiment breaks its contract: a step returned something else than it must."""


class CompileBudgetError(RuntimeError):
    """More programs were compiled than `max_compiles` allows."""


class CheckpointError(Exception):
    """A checkpoint cannot be written, is damaged, or is of another tree. The message says which."""


class ExportError(ValueError):
    """A step cannot be exported, or the file of an exported run cannot be used."""


class ShardingError(ValueError):
    """A mesh or a sharding cannot be used: it does not fit the devices or the arrays."""


class PeerError(RuntimeError):
    """The processes of a run cannot go on together: one failed, is missing, or does other work."""


class PeerFailed(PeerError):
    """Another process failed, or its script has ended while this one waits for it.

    Its message: "process 1 failed: RuntimeError: boom in one process".

    Attributes:
        process: its index.
        text: its error, as its traceback shows it.
    """

    def __init__(self, process: int, text: str) -> None:
        super().__init__(process, text)
        self.process, self.text = process, text

    def __str__(self) -> str:
        return f"process {self.process} failed: {self.text}"


class PeerMissing(PeerError):
    """Processes did not arrive in time at a place where all must meet.

    Attributes:
        processes: their indices.
        place: the place, such as "block 'train epoch 3 call 17'".
        timeout: how long the others have waited, in seconds.
    """

    def __init__(self, processes: tuple[int, ...], place: str, timeout: float) -> None:
        super().__init__(processes, place, timeout)
        self.processes, self.place, self.timeout = processes, place, timeout

    def __str__(self) -> str:
        who = f"process{'es' * (len(self.processes) > 1)} {', '.join(map(str, self.processes))}"
        return (
            f"{who} did not arrive at {self.place} within {self.timeout:g} s: slow, stopped or "
            "dead. See its log"
        )


class PeerMismatch(PeerError):
    """Processes are at different places of the program, where all must be at the same one.

    Attributes:
        places: pairs of a process and its place: one process of each place.
    """

    def __init__(self, places: tuple[tuple[int, str], ...]) -> None:
        super().__init__(places)
        self.places = places

    def __str__(self) -> str:
        where = "; ".join(f"process {process} is at {place}" for process, place in self.places)
        return f"the processes do different work: {where}. All must run the same script"
