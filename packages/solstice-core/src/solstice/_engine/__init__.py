"""The step engine: it stacks batches into blocks, and runs a block in one compiled call.

It knows no data set, no callback and no mode. This is its only door.
"""

from solstice._engine._block import Block as Block
from solstice._engine._block_size import SECONDS_PER_CALL as SECONDS_PER_CALL
from solstice._engine._block_size import BlockSize as BlockSize
from solstice._engine._compiled import CompiledStepper as CompiledStepper
from solstice._engine._cost import inner_jaxprs as inner_jaxprs
from solstice._engine._cost import size_of as size_of
from solstice._engine._digest import StepDigest as StepDigest
from solstice._engine._eager import line_of as line_of
from solstice._engine._functional import run_steps as run_steps
from solstice._engine._interrupts import Guard as Guard
from solstice._engine._interrupts import agree_on_signal as agree_on_signal
from solstice._engine._interrupts import end_if_asked as end_if_asked
from solstice._engine._interrupts import interrupts_guarded as interrupts_guarded
from solstice._engine._interrupts import signal_asked as signal_asked
from solstice._engine._interrupts import waiting as waiting
from solstice._engine._layout import Layout as Layout
from solstice._engine._layout import MeshLike as MeshLike
from solstice._engine._mesh import MeshPlacement as MeshPlacement
from solstice._engine._pack import type_of as type_of
from solstice._engine._pack import unpack as unpack
from solstice._engine._placement import SINGLE_DEVICE as SINGLE_DEVICE
from solstice._engine._placement import Placement as Placement
from solstice._engine._placement import check_processes as check_processes
from solstice._engine._placement import placement_of as placement_of
from solstice._engine._placement import topology as topology
from solstice._engine._placement import warn_of_spread_state as warn_of_spread_state
from solstice._engine._prefetch import prefetched as prefetched
from solstice._engine._program import PROGRAMS as PROGRAMS
from solstice._engine._program import Program as Program
from solstice._engine._program import program_of as program_of
from solstice._engine._protocols import BlockOutputs as BlockOutputs
from solstice._engine._protocols import StepCode as StepCode
from solstice._engine._protocols import Stepper as Stepper
from solstice._engine._resident import EpochOfRows as EpochOfRows
from solstice._engine._resident import ResidentBuffers as ResidentBuffers
from solstice._engine._resident import ResidentFeeder as ResidentFeeder
from solstice._engine._sharding import Sharding as Sharding
from solstice._engine._sharding import Spread as Spread
from solstice._engine._sharding import shard_bytes as shard_bytes
from solstice._engine._staging import BuffersByKind as BuffersByKind
from solstice._engine._staging import Feeder as Feeder
from solstice._engine._staging import StagingBuffers as StagingBuffers
from solstice._engine._stepper import make_stepper as make_stepper
from solstice._engine._totals import Reading as Reading
from solstice._engine._totals import metrics_like as metrics_like
from solstice._engine._trace import Plan as Plan
from solstice._engine._trace import Traced as Traced
from solstice._engine._trace import prepare as prepare
