"""The memory that a step works in, read from its jaxpr: what lives when, after XLA's fusion.

The model, in the order in which it is applied:

1. Calls are inlined, equal operations are one, and results that nobody reads are none.
2. An elementwise operation, or one that only moves numbers, is fused into what reads it and takes
   no memory, unless it would be done twice at a price: it is costly and read twice or spread by a
   broadcast, or it is read twice and has two large operands. Products, convolutions, sorts,
   scatters and loops take in nothing and are memory.
3. A donated array that is read by what need not run before its update is copied first.
4. Operations run in the order in which they become ready: first in, first out.
5. A result lives from its operation to its last reader, in the memory of a copied array where it
   fits, and the peak is that of the sum of all others.

Where XLA gives reductions to a library of kernels, these read whole arrays: of a broadcast too, of
a number in the code, and of what others read as well. A maximum over windows has its gradient by
coordinates of the largest number, as XLA has it. A loop needs its results and what one turn needs.
"""

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal  # pyright: ignore[reportPrivateImportUsage]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_REMAT = _names("checkpoint remat remat2")
_CALLS = _REMAT | _names(
    "pjit jit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr"
)
_LOOPS = _names("scan while cond")
_SAME = _names("reshape squeeze expand_dims stop_gradient copy optimization_barrier")
_MOVES = _names("broadcast_in_dim transpose slice dynamic_slice pad concatenate iota rev select_n")
_COSTLY = _names(
    "exp exp2 expm1 log log1p tanh logistic erf erfc erf_inv sin cos tan asin acos atan atan2 "
    "sinh cosh asinh acosh atanh pow div rem sqrt rsqrt cbrt lgamma digamma"
)
_ALONE = _names(
    "dot_general conv_general_dilated sort gather dynamic_update_slice fft argmax argmin "
    "cholesky triangular_solve lu qr eigh svd"
)
_ALONE_BY_START = ("reduce_", "scatter", "cum", "select_and_", "random_", "threefry", "rng_")
_BEHIND = "behind a barrier"
_IN_PLACE = ("scatter", "dynamic_update_slice", "scan", "while")


@dataclass(frozen=True)
class Footprint:
    """What a step needs beside its arguments and results.

    Attributes:
        temporary: bytes at the peak.
        moved: bytes that are read and written, about.
    """

    temporary: int
    moved: int


@dataclass(frozen=True)
class Compiler:
    """How XLA compiles, where its versions differ.

    Attributes:
        library: whether reductions go to a library of kernels, which reads operands from memory;
            fused loops then write over an operand that ends with them, too.
        recomputes: whether `jax.checkpoint` computes anew; if not, what it does is found to have
            been done.
    """

    library: bool
    recomputes: bool


@lru_cache(maxsize=1)
def compiler() -> Compiler:
    """XLA as it is installed: it is asked by compiling two functions of a line each."""
    x = jax.ShapeDtypeStruct((512, 512), "float32")
    sums, twice = (cast("Any", jax.jit(f)).lower(x).compile() for f in (_sums, _twice))
    return Compiler("kind=kCustom" in sums.as_text(), twice.as_text().count(" tanh(") > 1)


def _sums(x: Any) -> Any:
    return (x * x).sum(-1)


def _twice(x: Any) -> Any:
    return jnp.tanh(x), jnp.tanh(jax.lax.optimization_barrier(x))


@dataclass
class _Node:
    """An operation, or an argument, with what it reads by index.

    Attributes:
        size: elements of its result.
        fuses: whether it may be computed within what reads it.
        spreads: whether one element that it reads makes many of its result.
        takes: what it takes in: "all"; "inner", the same for a reduction over the innermost axis;
            the name of an operation; or "".
        library: whether it runs in a library of kernels, which reads its operands from memory.
        scalars: numbers in the code among its operands.
        inner: what its loop needs beside.
        moved: bytes that its loop moves.
    """

    name: str
    reads: tuple[int, ...]
    nbytes: int
    size: int
    fuses: bool = False
    spreads: bool = False
    takes: str = ""
    library: bool = False
    scalars: tuple[str, ...] = ()
    inner: int = 0
    moved: int = 0


def footprint(jaxpr: Any, donated: int, xla: Compiler | None = None) -> Footprint:
    """`footprint(jaxpr, 12)`: the memory of a step whose first 12 arguments become its results.

    Args:
        jaxpr: of the step, without a `ClosedJaxpr` around it.
        donated: how many of the first arguments are written over by as many first results.
        xla: how it will be compiled; as XLA itself shows if None.
    """
    graph = _Graph(xla or compiler())
    inputs = [graph.argument(variable.aval) for variable in jaxpr.invars]
    outputs = graph.inline(jaxpr, inputs)
    units = _fuse(graph, {out for out in outputs if out is not None})
    pairs = zip(inputs[:donated], outputs[:donated], strict=True)
    updates = {old: new for old, new in pairs if new is not None and new != old}
    copies = _copy(graph, units, updates)
    moved = sum(graph.nodes[i].moved + _moved(graph, i, reads) for i, reads in units.items())
    return Footprint(_peak(graph, units, copies, outputs), moved)


def nbytes(aval: Any) -> int:
    """The size of an array, in bytes; 0 of what is none."""
    return _size(aval) * aval.dtype.itemsize if hasattr(aval, "dtype") else 0


class _Graph:
    """The operations of a jaxpr with those of its calls, each once."""

    def __init__(self, xla: Compiler) -> None:
        self.xla = xla
        self.nodes: list[_Node] = []
        self._seen: dict[Any, int] = {}

    def argument(self, aval: Any) -> int:
        return self._add(_Node("argument", (), nbytes(aval), _size(aval)))

    def constant(self, scalar: str, node: _Node) -> int:
        """A number of the code as an array of the shape of a result, once."""
        made = _Node("constant", (), node.nbytes, node.size, spreads=True)
        return self._once((scalar, node.nbytes), made)

    def copy_of(self, index: int) -> int:
        node = self.nodes[index]
        return self._add(_Node("copy", (index,), node.nbytes, node.size))

    def inline(self, jaxpr: Any, inputs: Sequence[int | None]) -> list[int | None]:
        """Adds what a jaxpr does to these; gives the index of each result, None of a constant."""
        known: dict[Any, int | None] = dict(zip(jaxpr.invars, inputs, strict=True))
        for variable in jaxpr.constvars:  # in the program itself
            known[variable] = self._add(_Node("argument", (), 0, _size(variable.aval)))

        def read(variable: Any) -> int | None:
            return None if isinstance(variable, Literal) else known.get(variable)

        for equation in jaxpr.eqns:
            if not equation.outvars:
                continue
            reads = [read(variable) for variable in equation.invars]
            parts = list(_inner(equation.params))
            if equation.primitive.name in _CALLS and parts:
                reads = reads[len(reads) - len(parts[0].invars) :]
                again = equation.params.get("differentiated") and self.xla.recomputes
                made = self.inline(parts[0], self._behind(reads) if again else reads)
            elif _is_same(equation):
                made = reads[: len(equation.outvars)]
            else:
                made = [self._operation(equation, reads, parts)] * len(equation.outvars)
            known.update(zip(equation.outvars, made, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _behind(self, reads: list[int | None]) -> list[int | None]:
        """The same, to be read when all of them are there: what is computed anew is not early."""
        barrier = self._add(_Node("barrier", tuple(r for r in reads if r is not None), 0, 0))
        made: list[int | None] = []
        for read in reads:
            node = self.nodes[read or 0]
            same = _Node(_BEHIND, (read or 0, barrier), node.nbytes, node.size, fuses=True)
            made.append(None if read is None else self._add(same))
        return made

    def _maxima(self, equation: Any, reads: list[int | None]) -> list[int | None]:
        """Where the largest of each window is, by coordinate, beside what is to be put there."""
        source, operand = (variable.aval for variable in equation.invars)
        rank, places = len(operand.shape), cast("list[int | None]", [])
        for axis in range(rank):
            like = _Node("", (), 4 * _size(operand), _size(operand))
            places.append(self.constant(f"axis {axis}", like))
        size = nbytes(source) + 4 * rank * _size(source)
        inputs = tuple(r for r in (reads[1], *places) if r is not None)
        return [reads[0], self._add(_Node("argmax", inputs, size, _size(source)))]

    def _operation(self, equation: Any, reads: list[int | None], parts: list[Any]) -> int:
        name, out = equation.primitive.name, equation.outvars[0].aval
        scalars = tuple(_text(v) for v in equation.invars if isinstance(v, Literal))
        elementwise = not parts and all(_fits(v.aval, out) for v in equation.invars)
        fuses = not _is_alone(name) and not parts and (elementwise or name in _MOVES)
        fuses |= name == "dot_general" and _contracted(equation) == 1
        if elementwise and fuses and name not in _MOVES:
            operands = zip(reads, equation.invars, strict=True)
            reads = [self._spread(index, v.aval, out) for index, v in operands]
        if name == "select_and_scatter_add":
            reads = self._maxima(equation, reads)
        size = max([_size(v.aval) for v in equation.invars], default=0)
        node = _Node(
            name,
            tuple(index for index in reads if index is not None),
            sum(nbytes(v.aval) for v in equation.outvars),
            _size(out),
            fuses,
            spreads=name == "broadcast_in_dim" and _size(out) > size,
            takes="all" if fuses else _takes(equation),
            library=self.xla.library and _is_reduction(equation),
            scalars=scalars if elementwise and name not in _MOVES else (),
        )
        if not parts:
            kinds = tuple(str(v.aval) for v in equation.outvars)
            return self._once((name, *reads, scalars, str(equation.params), kinds), node)
        if name in _LOOPS:
            node.inner, node.moved = self._of_loop(equation, parts)
        return self._add(node)

    def _of_loop(self, equation: Any, parts: list[Any]) -> tuple[int, int]:
        """The memory within a loop, with what it hands on, and what it moves."""
        found = [footprint(part, 0, self.xla) for part in parts]
        results = [sum(nbytes(v.aval) for v in part.outvars) for part in parts]
        hands_on = equation.primitive.name != "cond"
        inner = [a.temporary + b * hands_on for a, b in zip(found, results, strict=True)]
        return max(inner), equation.params.get("length", 1) * max(f.moved for f in found)

    def _spread(self, index: int | None, aval: Any, out: Any) -> int | None:
        """An operand whose axes of length 1 are stretched, as a broadcast of its own."""
        if index is None or _size(aval) in (1, _size(out)):
            return index
        node = _Node("broadcast_in_dim", (index,), 0, _size(out), True, True, takes="all")
        node.nbytes = _size(out) * aval.dtype.itemsize
        return self._once(("spread", index, out.shape), node)

    def _once(self, key: Any, node: _Node) -> int:
        if key not in self._seen:
            self._seen[key] = self._add(node)
        return self._seen[key]

    def _add(self, node: _Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1


@dataclass
class _Fusion:
    """What is known of a node from its readers."""

    taken_by: set[int] = field(default_factory=set[int])
    is_memory: bool = True
    ends: set[int] = field(default_factory=set[int])
    spreads: bool = False
    library: bool = False


def _fuse(graph: _Graph, outputs: set[int]) -> dict[int, set[int]]:
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
    graph: _Graph, index: int, readers: list[int], fused: dict[int, _Fusion], is_output: bool
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


def _may_be_repeated(graph: _Graph, node: _Node, ends: set[int]) -> bool:
    """Whether computing it in each reader costs nothing: it has one operand of its size."""
    operands = [graph.nodes[read] for read in node.reads]
    large = sum(o.size >= node.size and not o.spreads for o in operands)
    return node.name not in _COSTLY and (large <= 1 or len(ends) <= 1)


def _takes_in(graph: _Graph, node: _Node, reader: int, known: _Fusion, once: bool) -> bool:
    """Whether a reader computes an operand itself."""
    if node.name == _BEHIND:
        return True
    if node.name in _COSTLY and known.spreads:
        return False
    if known.library:  # its operands are whole arrays, with those of broadcasts
        return once and not node.spreads and node.name != "pad"
    takes = graph.nodes[reader].takes
    return takes in ("all", "inner") or takes == node.name


def _readers(graph: _Graph, outputs: set[int]) -> dict[int, list[int]]:
    """Who reads each node that is needed."""
    readers: dict[int, list[int]] = {out: [] for out in outputs}
    for index in range(len(graph.nodes) - 1, -1, -1):
        if index in readers:
            for read in set(graph.nodes[index].reads):
                readers.setdefault(read, []).append(index)
    return readers


def _copy(graph: _Graph, units: dict[int, set[int]], updates: dict[int, int]) -> dict[int, Any]:
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


def _peak(
    graph: _Graph, units: dict[int, set[int]], copies: dict[int, Any], outputs: list[int | None]
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
    graph: _Graph,
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


def _order(graph: _Graph, units: dict[int, set[int]]) -> list[int]:
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


def _moved(graph: _Graph, index: int, reads: set[int]) -> int:
    if graph.nodes[index].name == "argument":
        return 0
    return graph.nodes[index].nbytes + sum(graph.nodes[read].nbytes for read in reads)


def _is_same(equation: Any) -> bool:
    """Whether the result is the operand, in the same memory."""
    name, old, new = equation.primitive.name, equation.invars[0:1], equation.outvars[0].aval
    if name == "convert_element_type":
        return old[0].aval.dtype == new.dtype
    if name == "broadcast_in_dim":
        return not isinstance(old[0], Literal) and _size(old[0].aval) == _size(new)
    return name in _SAME


def _is_alone(name: str) -> bool:
    """Whether it is no loop over elements."""
    return name in _ALONE or name in _LOOPS or name.startswith(_ALONE_BY_START)


def _is_reduction(equation: Any) -> bool:
    params = equation.params
    if equation.primitive.name.startswith("reduce_window"):  # pooling; its gradient is none
        return params.get("window_dimensions") == params.get("window_strides")
    return equation.primitive.name.startswith("reduce_")


def _takes(equation: Any) -> str:
    """Which operands an operation takes in that is no loop over elements."""
    name, params = equation.primitive.name, equation.params
    if name.startswith("reduce_window"):
        return "pad"
    if name == "dot_general":
        return "" if params["dimension_numbers"][1][0] else "transpose"
    if not name.startswith("reduce_") or not equation.invars:
        return ""
    return "inner" if len(equation.invars[0].aval.shape) - 1 in params.get("axes", ()) else ""


def _fits(aval: Any, out: Any) -> bool:
    """Whether an operand stretches to the shape of the result, axis by axis."""
    old, new = getattr(aval, "shape", ()), getattr(out, "shape", ())
    if math.prod(old) == 1:
        return True
    return len(old) == len(new) and all(a in (1, b) for a, b in zip(old, new, strict=True))


def _contracted(equation: Any) -> int:
    (axes, _), _ = equation.params["dimension_numbers"]
    return math.prod(equation.invars[0].aval.shape[axis] for axis in axes)


def _text(literal: Any) -> str:
    return str(literal.val if _size(literal.aval) == 1 else id(literal.val))


def _size(aval: Any) -> int:
    return math.prod(getattr(aval, "shape", ()))


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for part in cast("Any", value if isinstance(value, tuple | list) else (value,)):
            if isinstance(part, Jaxpr | ClosedJaxpr):
                yield getattr(part, "jaxpr", part)
