"""`solstice.checkpoint`: save and load trees, bit for bit, whole or not at all.

`__all__` has what users need. The other names are for the loop and for `Checkpoint`, whose only
door this is.
"""

from solstice._errors import CheckpointError
from solstice.checkpoint._bucket import BucketError as BucketError
from solstice.checkpoint._bucket import absolute as absolute
from solstice.checkpoint._bucket import is_url as is_url
from solstice.checkpoint._bucket import names_in as names_in
from solstice.checkpoint._bucket import newest_version as newest_version
from solstice.checkpoint._bucket import place as place
from solstice.checkpoint._bucket import read_object as read_object
from solstice.checkpoint._bucket import remove_object as remove_object
from solstice.checkpoint._bucket import write_object as write_object
from solstice.checkpoint._diff import diff
from solstice.checkpoint._folder import check_writable, exists, remove, sweep
from solstice.checkpoint._folder import remove_alone as remove_alone
from solstice.checkpoint._folder import sweep_alone as sweep_alone
from solstice.checkpoint._load import load, manifest
from solstice.checkpoint._load import load_renamed as load_renamed
from solstice.checkpoint._peers import Peers as Peers
from solstice.checkpoint._rows import AppendOnly
from solstice.checkpoint._rows import held as held
from solstice.checkpoint._rows import read_rows as read_rows
from solstice.checkpoint._rows import unheld as unheld
from solstice.checkpoint._save import begin, save, versions
from solstice.checkpoint._saved import Folder as Folder
from solstice.checkpoint._saved import Saved as Saved
from solstice.checkpoint._saved import of_newest_run as of_newest_run

__all__ = [
    "AppendOnly",
    "CheckpointError",
    "begin",
    "check_writable",
    "diff",
    "exists",
    "load",
    "manifest",
    "remove",
    "save",
    "sweep",
    "versions",
]
