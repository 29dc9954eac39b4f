"""`solstice.runs`: the folder of a run, what its file `run.json` says, and any step of the run.

`__all__` has what users need. The other names are for the Trainer and the command line.
"""

from solstice.runs._at import at
from solstice.runs._blame import Blame, Example, blame
from solstice.runs._diff import RunDiff, diff
from solstice.runs._info import RunInfo, read
from solstice.runs._keeper import RunKeeper as RunKeeper
from solstice.runs._show import described as described
from solstice.runs._table import listing as listing

__all__ = ["Blame", "Example", "RunDiff", "RunInfo", "at", "blame", "diff", "read"]
