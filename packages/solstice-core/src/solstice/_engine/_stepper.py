"""The stepper of a step: compiled if JAX can trace the step, eager otherwise."""

from collections.abc import Callable

import jax

from solstice._engine._compiled import CompiledStepper
from solstice._engine._eager import EagerStepper, line_of
from solstice._engine._placement import SINGLE_DEVICE, Placement
from solstice._engine._protocols import Stepper
from solstice._errors import ExperimentError
from solstice._experiment import Experiment
from solstice._types import Batch, Outputs


def make_stepper(
    experiment: Experiment,
    method: str,
    batch: Batch,
    look: Callable[[str, Outputs], None],
    *,
    steps_per_call: int | None = None,
    keeps_outputs: bool = False,
    can_rewind: bool = False,
    readers: int = 1,
    epoch_steps: int | None = None,
    placement: Placement = SINGLE_DEVICE,
    given: Experiment | None = None,
    hashes_every: int | None = None,
) -> Stepper:
    """A stepper that starts with an Experiment; the arguments are those of `CompiledStepper`.

    `look` is called with the name of the step and its outputs: once with their shapes if the step
    is compiled, and with the outputs of each step otherwise.
    """
    try:
        stepper = CompiledStepper(
            experiment,
            method,
            batch,
            steps_per_call=steps_per_call,
            keeps_outputs=keeps_outputs,
            can_rewind=can_rewind,
            readers=readers,
            epoch_steps=epoch_steps,
            placement=placement,
            given=given,
            hashes_every=hashes_every,
        )
    except jax.errors.JAXTypeError as error:  # the step needs values, and tracing has none
        if placement.is_mesh:
            raise ExperimentError(
                f"{type(experiment).__name__}.{method} cannot be compiled, so it cannot run on a "
                f"mesh of {placement.num_devices} devices: {line_of(error)}. Write it with "
                f"jax.numpy, jnp.where and jax.lax.cond, or use a Trainer without a mesh"
            ) from error
        return EagerStepper(experiment, method, error, readers, look, given, hashes_every)
    if method != "predict_step":
        look(stepper.name, stepper.outputs)
    return stepper
