"""The message if a compiled call failed and took the Experiment with it."""

_LOST = """\
The Experiment is lost: a compiled call failed, and its inputs were donated to save memory. The \
Experiment given to `fit` {given}. Resume from the newest checkpoint: write \
`trainer.fit({first}..., resume="last")`, with \
`solstice.callbacks.Checkpoint("runs/a", every=1000)` among the callbacks"""


def lost(*, gave_up: bool) -> str:
    """The message, where `donate=True` gave the caller's Experiment up, or elsewhere."""
    if gave_up:
        return _LOST.format(given="was given up (`donate=True`)", first="a_new_experiment, ")
    return _LOST.format(given="is unchanged", first="")
