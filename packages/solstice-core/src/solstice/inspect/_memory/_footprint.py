"""The memory of a step, and what it moves."""

from dataclasses import dataclass
from typing import Any

from solstice.inspect._memory._compiler import Compiler, compiler
from solstice.inspect._memory._fusion import fuse
from solstice.inspect._memory._graph import Graph, Loop, nbytes
from solstice.inspect._memory._peak import copy_donated, peak_of


@dataclass(frozen=True)
class Footprint:
    """What a step needs beside its arguments and results.

    Attributes:
        temporary: bytes at the peak.
        moved: bytes that are read and written, about.
    """

    temporary: int
    moved: int


def footprint(jaxpr: Any, donated: int, xla: Compiler | None = None) -> Footprint:
    """`footprint(jaxpr, 12)`: the memory of a step whose first 12 arguments become its results.

    Args:
        jaxpr: of the step, without a `ClosedJaxpr` around it.
        donated: how many of the first arguments are written over by as many first results.
        xla: how it will be compiled; as XLA itself shows if None.
    """
    graph = Graph(xla or compiler())
    inputs = [graph.argument(variable.aval) for variable in jaxpr.invars]
    outputs = graph.inline(jaxpr, inputs)
    for index, loop in graph.loops.items():
        graph.nodes[index].inner, graph.nodes[index].moved = _of_loop(loop, graph.xla)
    units = fuse(graph, {out for out in outputs if out is not None})
    pairs = zip(inputs[:donated], outputs[:donated], strict=True)
    updates = {old: new for old, new in pairs if new is not None and new != old}
    copies = copy_donated(graph, units, updates)
    moved = sum(graph.nodes[i].moved + _moved(graph, i, reads) for i, reads in units.items())
    return Footprint(peak_of(graph, units, copies, outputs), moved)


def _of_loop(loop: Loop, xla: Compiler) -> tuple[int, int]:
    """The memory within a loop, with what it hands on, and what it moves."""
    found = [footprint(part, 0, xla) for part in loop.parts]
    results = [sum(nbytes(v.aval) for v in part.outvars) for part in loop.parts]
    inner = [a.temporary + b * loop.hands_on for a, b in zip(found, results, strict=True)]
    return max(inner), loop.length * max(f.moved for f in found)


def _moved(graph: Graph, index: int, reads: set[int]) -> int:
    if graph.nodes[index].name == "argument":
        return 0
    return graph.nodes[index].nbytes + sum(graph.nodes[read].nbytes for read in reads)
