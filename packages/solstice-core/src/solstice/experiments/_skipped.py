"""The number of steps that an optimiser leaves out, for the metrics of a step."""

from jax import Array

from solstice.compat import OptState, spikes_of


def skipped_between(before: OptState, after: OptState) -> Array | None:
    """The steps that `skip_spikes` left out between two states; None without `skip_spikes`."""
    pairs = zip(spikes_of(before), spikes_of(after), strict=True)
    counts = [new.skipped - old.skipped for old, new in pairs]
    return sum(counts[1:], counts[0]) if counts else None
