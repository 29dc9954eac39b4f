"""What a step costs, from shapes alone."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import equinox as eqx
import jax
from jax.stages import Compiled

from solstice import _tree
from solstice._arguments import choice
from solstice._batch import arrays_of
from solstice._engine import (
    SINGLE_DEVICE,
    Layout,
    MeshLike,
    MeshPlacement,
    Plan,
    Sharding,
    inner_jaxprs,
    line_of,
    prepare,
    size_of,
    type_of,
)
from solstice._errors import ExperimentError
from solstice._experiment import Experiment
from solstice._text_table import aligned, size_text
from solstice._types import Batch


@dataclass(frozen=True)
class StepPlan:
    """`print(solstice.plan(exp, batch))`: what one step costs.

    The sizes that XLA gives are None, and printed as "unknown", on a backend that does not give
    them. On a mesh, all figures are those of each device.

    Attributes:
        name: the step, such as "Classifier.train_step".
        flops: floating-point operations, counted in the trace. A loop of unknown length counts
            once.
        state_bytes: the arrays of the Experiment: params, optimiser state and all else.
        batch_bytes: the arrays of the batch.
        output_bytes: the results that are not written over an input: metrics, and after
            `eval_step` and `predict_step` the Experiment too.
        temporary_bytes: the most that XLA needs at one time beside these: activations, gradients.
        program_bytes: the machine code, where XLA counts it; 0 on a CPU.
        peak_bytes: the sum that XLA allocates: state, batch, outputs, temporaries and program,
            with the padding of the device.
        moved_bytes: the bytes that the compiled operations read and write, as XLA counts them.
            None also where the step has a loop, of which XLA counts one turn.
        num_devices: the devices of the mesh; 1 without one.
    """

    name: str
    flops: int
    state_bytes: int
    batch_bytes: int
    output_bytes: int | None
    temporary_bytes: int | None
    program_bytes: int | None
    peak_bytes: int | None
    moved_bytes: int | None
    num_devices: int = 1

    def __str__(self) -> str:
        sizes = {
            "state": self.state_bytes,
            "batch": self.batch_bytes,
            "outputs": self.output_bytes,
            "temporary": self.temporary_bytes,
            "program": self.program_bytes,
            "peak": self.peak_bytes,
            "memory traffic": self.moved_bytes,
        }
        rows = [("operations", size_text(self.flops, "FLOP", "FLOP"))]
        rows += [(n, "unknown" if x is None else size_text(x)) for n, x in sizes.items()]
        lines = [f"  {line}" for line in aligned(rows, left=[0])]
        where = f", on each of {self.num_devices} devices" if self.num_devices > 1 else ""
        return "\n".join([f"{self.name}, one step{where}", *lines])

    __repr__ = __str__


def plan(
    experiment: Experiment | Callable[[], Experiment],
    batch: Batch,
    *,
    method: str = "train_step",
    mesh: MeshLike | None = None,
    sharding: Sharding = "replicated",
) -> StepPlan:
    """`print(solstice.plan(exp, batch))`: operations and memory of a step, before it runs.

    ```python
    x = jax.ShapeDtypeStruct((32, 2048), "int32")
    print(solstice.plan(lambda: MyExperiment(layers=32, width=4096), (x, x)))
    ```

    The step is traced and compiled for the default backend from shapes alone: no array is made, so
    a step that is too large for this machine has a plan too. The memory is what XLA assigns to the
    compiled step. On a CPU that leaves out the scratch memory of kernel libraries, to which JAX
    0.12 gives most of an evaluation: expect more there. The price is one compilation, as long as
    that of a run, which compiles a program of its own afterwards.

    The plan is of one step, on one device unless there is a mesh. A `Trainer` runs the same step in
    a loop, in the same memory. Beside that it holds two blocks of batches, by default of 8 MiB or
    one batch each, and a second state while you or a callback keep an Experiment, or if a callback
    may stop the run within a call.

    Args:
        experiment: an Experiment, whose leaves may be `jax.ShapeDtypeStruct`s; or a function that
            makes one, which is traced too.
        batch: arrays, or `jax.ShapeDtypeStruct`s in their place. `setup` sees shapes alone.
        method: "train_step", whose results are written over the Experiment; "eval_step" or
            "predict_step".
        mesh: the devices, as of a `Trainer`. The step is compiled for them, and the plan is that of
            each: its part of the batch and of the state, and the memory of what they exchange.
        sharding: as of a `Trainer`.

    Raises:
        ShardingError: the mesh or the sharding does not fit the devices or the Experiment.
        DataError: the step cannot unpack the batch.
        ExperimentError: the step cannot be compiled, since it reads numbers on the host; or it
            returns no pair, or an Experiment of another structure.
        TypeError: `experiment` is neither an Experiment nor a function that makes one.
    """
    choice("method", method, ("train_step", "eval_step", "predict_step"))
    if not isinstance(experiment, Experiment) and not callable(experiment):
        raise TypeError(
            f"experiment must be an Experiment, or a function that makes one; it is "
            f"{experiment!r:.60}"
        )
    layout = Layout.of(mesh, sharding)
    owner, step, inputs = _traced(experiment, method, batch)
    placement = SINGLE_DEVICE if layout is None else layout.placement()
    split, types = placement.shardings(step), list(step.types)
    has_loop = _has_loop(step.program.trace(types, inputs)[0])
    if isinstance(placement, MeshPlacement):
        types, inputs = placement.types(step, inputs)

    def call(arrays: list[Any], batch: Batch) -> tuple[list[Any], Any]:
        new, outputs = step.program.call(arrays, batch)
        return placement.constrain(new, split), placement.constrain_whole(outputs)

    donated = (0,) if method == "train_step" else ()
    # JAX would leave inputs out that the step does not use, though they take memory.
    jitted = jax.jit(call, donate_argnums=donated, keep_unused=True)
    compiled = cast("Any", jitted).lower(types, inputs).compile()
    return StepPlan(
        f"{owner}.{method}",
        step.cost.flops // placement.parts,
        _nbytes(types),
        _nbytes(_tree.leaves(inputs)),
        *_memory_of(compiled),
        None if has_loop else _moved_by(compiled),
        placement.num_devices,
    )


def _traced(given: object, method: str, batch: Batch) -> tuple[str, Plan, Batch]:
    """The class of the Experiment, its step, and the types of the arrays in a batch."""
    arrays, rest = cast("Any", eqx.partition((given, batch), _is_abstract_or_array))
    leaves, structure = _tree.flatten(arrays)
    found: list[tuple[str, Plan, Batch]] = []

    def look(leaves: list[Any]) -> None:
        given, batch = eqx.combine(_tree.unflatten(structure, leaves), rest)
        experiment, seen = _set_up(given, batch), arrays_of(batch)
        owner = type(experiment).__name__
        try:
            step, _ = prepare(experiment, method, seen)
        except jax.errors.JAXTypeError as error:  # the Trainer runs such a step uncompiled
            raise ExperimentError(
                f"{owner}.{method} cannot be compiled, so its memory and operations are unknown: "
                f"{line_of(error)}. Write it with jax.numpy, jnp.where and jax.lax.cond"
            ) from error
        found.append((owner, step, _tree.map(type_of, seen)))

    _tree.eval_shape(look, leaves)  # of an Experiment, JAX would keep the structure
    return found[0]


def _is_abstract_or_array(leaf: object) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _set_up(given: Any, batch: Batch) -> Experiment:
    try:
        made = given if isinstance(given, Experiment) else given()
        if not isinstance(made, Experiment):
            raise TypeError(
                f"the function given to `plan` must return an Experiment; it returned {made!r:.60}"
            )
        return made.setup(batch)
    except jax.errors.JAXTypeError as error:
        raise ExperimentError(
            f"an Experiment is made and set up from shapes here, and this needs numbers: "
            f"{line_of(error)}. If `setup` needs them only once, write "
            f"`solstice.plan(exp.setup(batch), batch)`"
        ) from error


def _memory_of(compiled: Compiled) -> tuple[int | None, int | None, int | None, int | None]:
    """Bytes of outputs, temporaries, program and all together; None where XLA does not say."""
    found = compiled.memory_analysis()
    if found is None:
        return None, None, None, None
    output = found.output_size_in_bytes - found.alias_size_in_bytes
    temporary, program = found.temp_size_in_bytes, found.generated_code_size_in_bytes
    return output, temporary, program, found.argument_size_in_bytes + output + temporary + program


def _moved_by(compiled: Compiled) -> int | None:
    found: dict[str, float] | None = compiled.cost_analysis()
    return int(found["bytes accessed"]) if found and "bytes accessed" in found else None


def _has_loop(jaxpr: Any) -> bool:
    return any(
        equation.primitive.name in ("scan", "while")
        or any(_has_loop(part) for part in inner_jaxprs(equation.params))
        for equation in jaxpr.eqns
    )


def _nbytes(types: Iterable[Any]) -> int:
    """The bytes of arrays on one device."""
    return sum(size_of(_on_one(x)) * x.dtype.itemsize for x in types)


def _on_one(like: Any) -> Any:
    sharding = getattr(like, "sharding", None)
    shape = like.shape if sharding is None else sharding.shard_shape(like.shape)
    return jax.ShapeDtypeStruct(shape, like.dtype)
