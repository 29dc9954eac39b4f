"""export: write the steps and the state of an Experiment into one file."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array

from solstice import _tree
from solstice._arguments import names, shown
from solstice._batch import arrays_of, is_traced, num_examples
from solstice._console import warn
from solstice._engine import PortableStep, Types, as_array, data_of, line_of, type_of
from solstice._errors import DataError, ExperimentError, ExportError
from solstice._experiment import Experiment, check_experiment, overrides, steps_epochs
from solstice._exporting._archive import (
    STATE,
    Manifest,
    Spec,
    check_replaceable,
    member_of,
    pack_arrays,
    write,
)
from solstice._exporting._programs import (
    Lowered,
    bare,
    check_flatbuffers,
    lower,
    named,
    of_any_length,
    only,
)
from solstice._paths import local_path
from solstice._stored import to_stored
from solstice._types import Batch
from solstice.checkpoint import versions

PLATFORMS = ("cpu", "cuda", "tpu")
_KNOWN = (*PLATFORMS, "rocm")

_ON_THE_HOST = {
    "check_batch": "it checks values on the host: labels out of range go unnoticed",
    "stacked_check": "it checks values on the host: labels out of range go unnoticed",
    "epoch_step": "it is Python, which runs between epochs",
}
"""Methods of an Experiment that a Trainer calls, and that no program has."""


def export(
    experiment: Experiment,
    batch: Batch,
    path: str | PathLike[str],
    *,
    platforms: Iterable[str] = PLATFORMS,
) -> Path:
    """`solstice.export(exp, batch, "run.zip")`: the steps and the state, to run without the code.

    ```python
    solstice.export(exp, next(iter(train_ds)), "run.zip")
    run = solstice.exported("run.zip")               # in another process, without your code
    state = run.init()
    state, metrics = run.train_step(state, batch)
    metrics.compute()["loss"]
    ```

    The file has the train step, the eval step, the predict step if there is one, and the arrays of
    the Experiment. The model, the optimiser, the metrics and the PRNG are in the steps, as
    StableHLO. Nothing of Python is in it: no code, no pickle, no paths of your files. JAX alone can
    run it. A training step gives the bits that a Trainer gives on the platform of the export.

    JAX promises to read the file for 6 months after the release of the JAX that wrote it. It is
    not an archive: for that, keep a checkpoint and the code.

    Args:
        experiment: the Experiment, which is not changed. `setup(batch)` completes it.
        batch: a batch of the usual shapes. The train step takes these alone. The eval and the
            predict step take any number of examples, if they can be traced with an unknown one.
        path: the file. An exported run that is there is replaced.
        platforms: where the steps can run: "cpu", "cuda", "rocm" or "tpu", one or several.

    Returns:
        The path.

    Raises:
        ExportError: a step cannot leave this process, for instance because it calls Python while it
            runs; or another file is at `path`.
        DataError, ExperimentError: as by a Trainer, before a step runs.
        ImportError: flatbuffers is not installed: `pip install "./packages/solstice-core[export]"`.
        TypeError, ValueError: an argument is of another kind, or `path` is a URL.
    """
    place, chosen = _checked(experiment, path, platforms, "solstice.export")
    batch = _checked_batch(batch)
    exp = experiment.setup(batch)
    methods = ["train_step", "eval_step"]
    if overrides(type(exp), "predict_step"):
        methods.append("predict_step")
    steps = {method: _step(exp, method, batch) for method in methods}
    file = _File(exp, place, chosen, _whole_state(steps))
    for method, step in steps.items():
        file.add(method, step, num_examples(arrays_of(batch)))
    file.leave_out_host_code()
    return file.write()


def export_predict(
    experiment: Experiment,
    batch: Batch,
    path: str | PathLike[str],
    *,
    platforms: Iterable[str] = PLATFORMS,
) -> Path:
    """`solstice.export_predict(exp, x, "model.zip")`: the predict step, for inference.

    ```python
    solstice.export_predict(exp, x[:32], "model.zip")
    model = solstice.exported("model.zip")
    predictions = model.predict_step(model.init(), x)
    ```

    The file has the arrays on which predictions depend: no optimiser state, and the averaged
    weights instead of the trained ones with `compat.ema`.

    Args:
        experiment: the Experiment, with a `predict_step`.
        batch: a batch for `predict_step`. The step then takes any number of examples, if it can be
            traced with an unknown one.
        path: as in `solstice.export`.
        platforms: as in `solstice.export`.

    Returns:
        The path.

    Raises:
        ExportError, DataError, ExperimentError, ImportError, TypeError, ValueError: as by
            `solstice.export`; an ExportError if there is no `predict_step`.
    """
    place, chosen = _checked(experiment, path, platforms, "solstice.export_predict")
    if not overrides(type(experiment), "predict_step"):
        raise ExportError(
            f"{type(experiment).__name__} has no predict_step: write "
            f"`def predict_step(self, batch): return outputs` in it"
        )
    batch = _checked_batch(batch)
    step = _step(experiment.setup(batch), "predict_step", batch)
    state = {name: array for name, array in step.state.items() if name not in step.unused}
    file = _File(experiment, place, chosen, state)
    file.add("predict_step", step, num_examples(arrays_of(batch)))
    return file.write()


def _checked(
    experiment: Experiment, path: str | PathLike[str], platforms: object, who: str
) -> tuple[Path, list[str]]:
    """The arguments in their plain forms, before anything is traced."""
    check_experiment(experiment)
    if is_traced(experiment):
        raise ExportError(f"{who} needs values: call it outside of `jax.jit` and its kind")
    if jax.process_count() > 1:
        raise ExportError(f"{who} runs in one process: load a checkpoint of the run there")
    place = local_path(path, "path")
    check_replaceable(place, who)
    check_flatbuffers()
    chosen = names("platforms", platforms) or ()
    if not chosen or not {*chosen} <= {*_KNOWN}:
        known = ", ".join(f'"{name}"' for name in _KNOWN)
        raise ValueError(f"platforms must be one or several of {known}; it is {platforms!r:.60}")
    return place, [*dict.fromkeys(chosen)]


def _checked_batch(batch: Batch) -> Batch:
    """The batch with tensors of any library as NumPy arrays.

    Raises:
        DataError: it has no arrays.
    """
    batch = _tree.map(as_array, batch)
    if not _tree.leaves(arrays_of(batch)):
        raise DataError(
            f"batch must have arrays; it is {shown(batch)}. Of a data set, write "
            f"`next(iter(train_ds))`"
        )
    return batch


def _step(experiment: Experiment, method: str, batch: Batch) -> PortableStep:
    try:
        return PortableStep(experiment, method, batch)
    except jax.errors.JAXTypeError as error:
        raise ExperimentError(
            f"{type(experiment).__name__}.{method} cannot be compiled: {line_of(error)}. Write it "
            f"with jax.numpy, jnp.where and jax.lax.cond"
        ) from error


def _whole_state(steps: Mapping[str, PortableStep]) -> dict[str, Array]:
    """The arrays of all steps.

    Raises:
        ExportError: a step has a number as a constant that another one changes.
    """
    state = {name: array for step in steps.values() for name, array in step.state.items()}
    for method, step in steps.items():
        for other in steps.values():
            stale = {*other.state} - {*step.state} - other.fixed
            if stale:
                raise ExportError(
                    f"`{min(stale)}` is a Python number that a step changes, and {method} needs "
                    f"its value while it is traced, for a shape or a branch: make it an array"
                )
    return state


@dataclass(frozen=True)
class _File:
    """The content of a file that is made.

    Attributes:
        experiment: the Experiment.
        path: the file.
        platforms: where the steps can run.
        state: the arrays by path.
        programs: the programs so far.
        left_out: what cannot be in the file, and why.
    """

    experiment: Experiment
    path: Path
    platforms: list[str]
    state: dict[str, Array]
    programs: dict[str, Lowered] = field(default_factory=dict[str, Lowered])
    left_out: dict[str, str] = field(default_factory=dict[str, str])

    def add(self, method: str, step: PortableStep, rows: int) -> None:
        """Adds a step, and the programs that merge and compute its metrics."""
        name = f"{type(self.experiment).__name__}.{method}"

        def lowered(types: Types) -> Lowered:
            if method != "predict_step":
                run = _function(step)
                return lower(name, run, self.platforms, types, self._types, only(types))
            # A batch may have targets too.
            taken = {n: t for n, t in types.items() if n not in step.unused_inputs} or types
            run = _prediction(step, types, taken)
            return lower(name, run, self.platforms, taken, self._types, only(taken))

        fixed = step.batch_types
        # The loss of a training step may round otherwise if the number of examples is a variable.
        self.programs[method] = (
            lowered(fixed)
            if method == "train_step"
            else _first_of(lowered, of_any_length(fixed, rows), fixed)
        )
        if method != "predict_step" and step.metrics_types is not None:
            self._add_metrics(method.removesuffix("_step"), step)

    def _add_metrics(self, prefix: str, step: PortableStep) -> None:
        types = step.metrics_types or {}
        for word, function, count in (("merge", step.merge, 2), ("compute", step.compute, 1)):
            name = f"{prefix}_{word}"
            if step.grows:
                self.left_out[name] = "the metrics grow when they are merged"
                continue
            try:
                given = [types] * count
                self.programs[name] = lower(name, function, self.platforms, types, *given)
            except ExportError as error:
                self.left_out[name] = str(error)

    def leave_out_host_code(self) -> None:
        """Notes the methods that run on the host, and warns of one without which a run differs."""
        kind = type(self.experiment)
        self.left_out.update({m: why for m, why in _ON_THE_HOST.items() if overrides(kind, m)})
        if steps_epochs(self.experiment):
            warn(
                f"{kind.__name__}.epoch_step is not exported, because it is Python: whoever runs "
                f"{self.path} does what it does between epochs",
                stacklevel=3,  # the line of `solstice.export`
            )

    @property
    def _types(self) -> Types:
        return {name: type_of(data_of(array)) for name, array in self.state.items()}

    def write(self) -> Path:
        """Writes the file."""
        stored = {name: to_stored(name, array) for name, array in self.state.items()}
        found = versions()
        manifest = Manifest(
            experiment=type(self.experiment).__name__,
            exported_at=datetime.now(UTC).isoformat(timespec="seconds"),
            readable=_readable(found["jax"]),
            versions=found,
            platforms=self.platforms,
            x64=cast("Any", jax.config).read("jax_enable_x64"),
            state={
                name: Spec(x.array.dtype.name, [*x.array.shape], x.impl)
                for name, x in stored.items()
            },
            programs={name: lowered.program for name, lowered in self.programs.items()},
            left_out=self.left_out,
        )
        arrays = pack_arrays([x.array for x in stored.values()])
        programs = {
            member_of(platform, name): content
            for name, lowered in self.programs.items()
            for platform, content in lowered.contents.items()
        }
        write(self.path, manifest, {STATE: arrays, **programs})
        return self.path


def _function(step: PortableStep) -> Callable[..., Any]:
    def run(state: dict[str, Array], batch: Any) -> Any:
        return step(state, named(batch, step.batch_types))

    return run


def _prediction(step: PortableStep, types: Types, taken: Types) -> Callable[..., Any]:
    def run(state: dict[str, Array], batch: Any) -> Any:
        whole, inputs = _zeros(step.state_types), _zeros(types)
        return bare(step({**whole, **state}, {**inputs, **named(batch, taken)})[1])

    return run


def _zeros(types: Types) -> dict[str, Array]:
    return {name: jnp.zeros(x.shape, x.dtype) for name, x in types.items()}


def _first_of(lowered: Callable[[Types], Lowered], types: Types, fixed: Types) -> Lowered:
    try:
        return lowered(types)
    except ExportError:  # the step needs to know the number of examples
        return lowered(fixed)


def _readable(jax_version: str) -> str:
    return (
        f"JAX promises to read this file for 6 months after the release of jax {jax_version}, "
        f"which wrote it; a later JAX may refuse it, and so may an earlier one. Then install "
        f"jax=={jax_version}, or export the run again"
    )
