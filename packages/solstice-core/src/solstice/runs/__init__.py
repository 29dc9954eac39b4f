"""`solstice.runs`: the folder of a run, and what its file `run.json` says about the run.

`__all__` has what users need. The other names are for the Trainer.
"""

from solstice.runs._info import RunInfo, read
from solstice.runs._keeper import RunKeeper as RunKeeper

__all__ = ["RunInfo", "read"]
