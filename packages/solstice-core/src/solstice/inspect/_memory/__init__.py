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

from solstice.inspect._memory._compiler import Compiler as Compiler
from solstice.inspect._memory._compiler import compiler as compiler
from solstice.inspect._memory._footprint import Footprint as Footprint
from solstice.inspect._memory._footprint import footprint as footprint
from solstice.inspect._memory._graph import nbytes as nbytes
