"""CheckpointError."""


class CheckpointError(Exception):
    """A checkpoint cannot be written, is damaged, or is of another tree. The message says which."""
