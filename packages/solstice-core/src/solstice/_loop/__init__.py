"""The loop: training, evaluation and prediction, their hooks, and how a run is resumed.

This is its only door.
"""

from typing import TYPE_CHECKING

from solstice._loop._caveats import Caveats as Caveats
from solstice._loop._caveats import refused as refused
from solstice._loop._hooks import Hooks as Hooks
from solstice._loop._hooks import as_callbacks as as_callbacks
from solstice._loop._hooks import check_callbacks as check_callbacks
from solstice._loop._lifetime import Ended as Ended
from solstice._loop._lifetime import ended as ended
from solstice._loop._lifetime import reported as reported
from solstice._loop._lifetime import say_stopped as say_stopped
from solstice._loop._limits import Limits as Limits
from solstice._loop._loop import evaluate as evaluate
from solstice._loop._loop import predict as predict
from solstice._loop._loop import train as train
from solstice._loop._prepare import Evaluation as Evaluation
from solstice._loop._prepare import Training as Training
from solstice._loop._prepare import branch_of as branch_of
from solstice._loop._prepare import saved_before as saved_before
from solstice._loop._prepare import saved_run as saved_run
from solstice._loop._run import Run as Run
from solstice._loop._stage_options import StageOptions as StageOptions
from solstice._loop._stages import Stages as Stages
from solstice._loop._stages import first_batch as first_batch
from solstice._loop._until import Until as Until
from solstice._loop._validation import Validation as Validation

if TYPE_CHECKING:  # only runs that resume load them
    from solstice._loop._branch import Branch as Branch
    from solstice._loop._resume import SavedRun as SavedRun
