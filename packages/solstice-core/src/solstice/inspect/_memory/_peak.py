"""When each operation runs, how long its result lives, and the most that lives at once."""

from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Any

from solstice.inspect._memory._graph import Graph

_IN_PLACE = ("scatter", "dynamic_update_slice", "scan", "while")


def copy_donated(
    graph: Graph, units: dict[int, set[int]], updates: dict[int, int]
) -> dict[int, Any]:
    """Copies donated arrays that must outlive their update: `{copy: (array, update)}`."""
    before: dict[int, int] = {}
    readers: dict[int, list[int]] = defaultdict(list)
    for index, reads in units.items():
        before[index] = 1 << index
        for read in reads:
            before[index] |= before[read]
            readers[read].append(index)
    copies: dict[int, Any] = {}
    for old, new in updates.items():
        if all(before[new] >> reader & 1 for reader in readers[old]):
            continue
        copy = graph.copy_of(old)
        for reader in readers[old]:
            units[reader] = (units[reader] - {old}) | {copy}
        units[copy] = {old}
        copies[copy] = (old, new)
    return copies


def peak_of(
    graph: Graph, units: dict[int, set[int]], copies: dict[int, Any], outputs: list[int | None]
) -> int:
    """Bytes at the peak, without arguments and results."""
    order = _order(graph, units)
    time = {index: at for at, index in enumerate(order)}
    last = dict(time)
    for index, reads in units.items():
        last.update({read: max(last[read], time[index]) for read in reads})
    last.update({out: len(order) for out in outputs if out is not None})
    free: list[tuple[int, list[tuple[int, int]]]] = [
        (graph.nodes[old].nbytes, [(-1, time[copy]), (time[new], len(order))])
        for copy, (old, new) in copies.items()
    ]
    free.sort(key=lambda place: place[0])
    change = [0] * (len(order) + 2)
    buffers = _buffers(graph, units, order, last, outputs)
    for size, start, end in sorted(buffers, key=lambda buffer: (-buffer[0], *buffer[1:])):
        if not _put(free, size, start, end):
            change[start] += size
            change[end + 1] -= size
    for index, at in time.items():
        change[at] += graph.nodes[index].inner
        change[at + 1] -= graph.nodes[index].inner
    total = peak = 0
    for more in change:
        total += more
        peak = max(peak, total)
    return peak


def _buffers(
    graph: Graph,
    units: dict[int, set[int]],
    order: list[int],
    last: dict[int, int],
    outputs: list[int | None],
) -> Iterable[tuple[int, int, int]]:
    """Size, first and last time of each; a result may take over an operand that ends with it."""
    buffers: dict[int, list[int]] = {}
    for at, index in enumerate(order):
        node = graph.nodes[index]
        if node.name == "argument" or index in outputs:
            continue
        ending = [buffers[r] for r in sorted(units[index]) if r in buffers and last[r] == at]
        fitting = [b for b in ending if b[0] == node.nbytes and b[2] == at]
        in_place = node.name.startswith(_IN_PLACE) or (graph.xla.library and node.fuses)
        if in_place and fitting:
            buffers[index] = fitting[0]
            fitting[0][2] = last[index]
        else:
            buffers[index] = [node.nbytes, at, last[index]]
    return {id(b): (b[0], b[1], b[2]) for b in buffers.values()}.values()


def _put(free: list[tuple[int, list[tuple[int, int]]]], size: int, start: int, end: int) -> bool:
    """Whether there is room in the memory of an array that has been copied; it is taken."""
    for room, used in free:
        if size <= room and all(end < first or start > final for first, final in used):
            used.append((start, end))
            return True
    return False


def _order(graph: Graph, units: dict[int, set[int]]) -> list[int]:
    """When each operation runs: after those that were ready before it; copies at once."""

    def key(index: int) -> tuple[bool, bool, int]:
        name = graph.nodes[index].name
        return name != "argument", name != "copy", index

    readers: dict[int, list[int]] = defaultdict(list)
    for index in sorted(units, key=key):
        for read in units[index]:
            readers[read].append(index)
    waits = {index: len(reads) for index, reads in units.items()}
    ready = deque(sorted((index for index in units if not waits[index]), key=key))
    order: list[int] = []
    while ready:
        index = ready.popleft()
        order.append(index)
        for reader in readers[index]:
            waits[reader] -= 1
            if not waits[reader]:
                ready.append(reader)
    return order
