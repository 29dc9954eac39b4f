"""The operations of a step: its jaxpr with all calls inlined, and what each may be fused into."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from jax.extend.core import Literal  # pyright: ignore[reportPrivateImportUsage]

from solstice._engine._cost import inner_jaxprs, size_of
from solstice.inspect._memory._compiler import Compiler


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_REMAT = _names("checkpoint remat remat2")
_CALLS = _REMAT | _names(
    "pjit jit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr"
)
_LOOPS = _names("scan while cond")
_SAME = _names("reshape squeeze expand_dims stop_gradient copy optimization_barrier")
_MOVES = _names("broadcast_in_dim transpose slice dynamic_slice pad concatenate iota rev select_n")
COSTLY = _names(
    "exp exp2 expm1 log log1p tanh logistic erf erfc erf_inv sin cos tan asin acos atan atan2 "
    "sinh cosh asinh acosh atanh pow div rem sqrt rsqrt cbrt lgamma digamma"
)
_ALONE = _names(
    "dot_general conv_general_dilated sort gather dynamic_update_slice fft argmax argmin "
    "cholesky triangular_solve lu qr eigh svd"
)
_ALONE_BY_START = ("reduce_", "scatter", "cum", "select_and_", "random_", "threefry", "rng_")
BEHIND = "behind a barrier"


@dataclass
class Node:
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


@dataclass(frozen=True)
class Loop:
    """What runs within a loop or a branch.

    Attributes:
        parts: the jaxprs.
        hands_on: whether the results of one turn are the arguments of the next.
        length: turns, where they are known; else 1.
    """

    parts: list[Any]
    hands_on: bool
    length: int


def nbytes(aval: Any) -> int:
    """The size of an array, in bytes; 0 of what is none."""
    return size_of(aval) * aval.dtype.itemsize if hasattr(aval, "dtype") else 0


class Graph:
    """The operations of a jaxpr with those of its calls, each once.

    Attributes:
        nodes: the operations and arguments, each after those that it reads.
        loops: what runs within, by the index of the operation.
    """

    def __init__(self, xla: Compiler) -> None:
        self.xla = xla
        self.nodes: list[Node] = []
        self.loops: dict[int, Loop] = {}
        self._seen: dict[Any, int] = {}

    def argument(self, aval: Any) -> int:
        return self._add(Node("argument", (), nbytes(aval), size_of(aval)))

    def constant(self, scalar: str, node: Node) -> int:
        """A number of the code as an array of the shape of a result, once."""
        made = Node("constant", (), node.nbytes, node.size, spreads=True)
        return self._once((scalar, node.nbytes), made)

    def copy_of(self, index: int) -> int:
        node = self.nodes[index]
        return self._add(Node("copy", (index,), node.nbytes, node.size))

    def inline(self, jaxpr: Any, inputs: Sequence[int | None]) -> list[int | None]:
        """Adds what a jaxpr does to these; gives the index of each result, None of a constant."""
        known: dict[Any, int | None] = dict(zip(jaxpr.invars, inputs, strict=True))
        for variable in jaxpr.constvars:  # in the program itself
            known[variable] = self._add(Node("argument", (), 0, size_of(variable.aval)))

        def read(variable: Any) -> int | None:
            return None if isinstance(variable, Literal) else known.get(variable)

        for equation in jaxpr.eqns:
            if not equation.outvars:
                continue
            reads = [read(variable) for variable in equation.invars]
            parts = list(inner_jaxprs(equation.params))
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
        barrier = self._add(Node("barrier", tuple(r for r in reads if r is not None), 0, 0))
        made: list[int | None] = []
        for read in reads:
            node = self.nodes[read or 0]
            same = Node(BEHIND, (read or 0, barrier), node.nbytes, node.size, fuses=True)
            made.append(None if read is None else self._add(same))
        return made

    def _maxima(self, equation: Any, reads: list[int | None]) -> list[int | None]:
        """Where the largest of each window is, by coordinate, beside what is to be put there."""
        source, operand = (variable.aval for variable in equation.invars)
        rank, places = len(operand.shape), cast("list[int | None]", [])
        for axis in range(rank):
            like = Node("", (), 4 * size_of(operand), size_of(operand))
            places.append(self.constant(f"axis {axis}", like))
        size = nbytes(source) + 4 * rank * size_of(source)
        inputs = tuple(r for r in (reads[1], *places) if r is not None)
        return [reads[0], self._add(Node("argmax", inputs, size, size_of(source)))]

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
        size = max([size_of(v.aval) for v in equation.invars], default=0)
        node = Node(
            name,
            tuple(index for index in reads if index is not None),
            sum(nbytes(v.aval) for v in equation.outvars),
            size_of(out),
            fuses,
            spreads=name == "broadcast_in_dim" and size_of(out) > size,
            takes="all" if fuses else _takes(equation),
            library=self.xla.library and _is_reduction(equation),
            scalars=scalars if elementwise and name not in _MOVES else (),
        )
        if not parts:
            kinds = tuple(str(v.aval) for v in equation.outvars)
            return self._once((name, *reads, scalars, str(equation.params), kinds), node)
        if name in _LOOPS:
            hands_on, length = name != "cond", equation.params.get("length", 1)
            self.loops[len(self.nodes)] = Loop(parts, hands_on, length)
        return self._add(node)

    def _spread(self, index: int | None, aval: Any, out: Any) -> int | None:
        """An operand whose axes of length 1 are stretched, as a broadcast of its own."""
        if index is None or size_of(aval) in (1, size_of(out)):
            return index
        node = Node("broadcast_in_dim", (index,), 0, size_of(out), True, True, takes="all")
        node.nbytes = size_of(out) * aval.dtype.itemsize
        return self._once(("spread", index, out.shape), node)

    def _once(self, key: Any, node: Node) -> int:
        if key not in self._seen:
            self._seen[key] = self._add(node)
        return self._seen[key]

    def _add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1


def _is_same(equation: Any) -> bool:
    """Whether the result is the operand, in the same memory."""
    name, old, new = equation.primitive.name, equation.invars[0:1], equation.outvars[0].aval
    if name == "convert_element_type":
        return old[0].aval.dtype == new.dtype
    if name == "broadcast_in_dim":
        return not isinstance(old[0], Literal) and size_of(old[0].aval) == size_of(new)
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
    return str(literal.val if size_of(literal.aval) == 1 else id(literal.val))
