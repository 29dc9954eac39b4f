"""Data sets of any library, as batches of NumPy arrays that can be resumed.

This is its only door.
"""

from solstice._sources._identity import checksum as checksum
from solstice._sources._open import needs_batch_size as needs_batch_size
from solstice._sources._open import open_source as open_source
from solstice._sources._positions import fingerprint as fingerprint
from solstice._sources._saved import SourcePosition as SourcePosition
from solstice._sources._source import Source as Source
