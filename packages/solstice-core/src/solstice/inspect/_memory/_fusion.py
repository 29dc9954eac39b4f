"""Which operations are fused into others, and which are memory."""

from dataclasses import dataclass, field

from solstice.inspect._memory._graph import BEHIND, COSTLY, Graph, Node


@dataclass
class _Fusion:
    """What is known of a node from its readers."""

    taken_by: set[int] = field(default_factory=set[int])
    is_memory: bool = True
    ends: set[int] = field(default_factory=set[int])
    spreads: bool = False
    library: bool = False


def fuse(graph: Graph, outputs: set[int]) -> dict[int, set[int]]:
    """The operations that are left, each with what it reads from memory."""
    readers = _readers(graph, outputs)
    fused: dict[int, _Fusion] = {}
    for index in sorted(readers, reverse=True):
        fused[index] = _decide(graph, index, readers[index], fused, index in outputs)
    units: dict[int, set[int]] = {}
    through: dict[int, set[int]] = {}
    for index in sorted(readers):
        node, reads = graph.nodes[index], set[int]()
        for read in node.reads:
            reads |= through[read] if index in fused[read].taken_by else {read}
        if fused[index].library and not fused[index].is_memory:
            reads |= {graph.constant(scalar, node) for scalar in node.scalars}
        through[index] = reads
        if fused[index].is_memory:
            units[index] = reads
    constants = set[int]().union(*units.values()) - units.keys()
    return {**{constant: set[int]() for constant in sorted(constants)}, **units}


def _decide(
    graph: Graph, index: int, readers: list[int], fused: dict[int, _Fusion], is_output: bool
) -> _Fusion:
    node = graph.nodes[index]
    ends = set[int]().union(*(fused[reader].ends for reader in readers))
    ends |= {index} if is_output else set()
    once = len(readers) + is_output == 1
    taken: set[int] = set()
    if node.fuses and (once or _may_be_repeated(graph, node, ends)):
        taken = {r for r in readers if _takes_in(graph, node, r, fused[r], once)}
    if len(taken) < len(readers) or is_output or node.name == "argument":
        return _Fusion(taken, True, {index}, node.spreads, node.library)
    spreads = node.spreads or any(fused[reader].spreads for reader in readers)
    ends = set(sorted(ends)[:2])
    return _Fusion(taken, False, ends, spreads, any(fused[r].library for r in readers))


def _may_be_repeated(graph: Graph, node: Node, ends: set[int]) -> bool:
    """Whether computing it in each reader costs nothing: it has one operand of its size."""
    operands = [graph.nodes[read] for read in node.reads]
    large = sum(o.size >= node.size and not o.spreads for o in operands)
    return node.name not in COSTLY and (large <= 1 or len(ends) <= 1)


def _takes_in(graph: Graph, node: Node, reader: int, known: _Fusion, once: bool) -> bool:
    """Whether a reader computes an operand itself."""
    if node.name == BEHIND:
        return True
    if node.name in COSTLY and known.spreads:
        return False
    if known.library:  # its operands are whole arrays, with those of broadcasts
        return once and not node.spreads and node.name != "pad"
    takes = graph.nodes[reader].takes
    return takes in ("all", "inner") or takes == node.name


def _readers(graph: Graph, outputs: set[int]) -> dict[int, list[int]]:
    """Who reads each node that is needed."""
    readers: dict[int, list[int]] = {out: [] for out in outputs}
    for index in range(len(graph.nodes) - 1, -1, -1):
        if index in readers:
            for read in set(graph.nodes[index].reads):
                readers.setdefault(read, []).append(index)
    return readers
