"""exported: the steps and the state of a run, from its file."""

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import equinox as eqx
import jax
import numpy as np
from jax import Array
from jax import export as jax_export

from solstice import _tree
from solstice._batch import arrays_of
from solstice._engine import as_array, type_of
from solstice._errors import DataError, ExportError
from solstice._experiment import Experiment
from solstice._exporting._archive import STATE, Manifest, Spec, load, member_of, unpack_arrays
from solstice._exporting._programs import check_flatbuffers, only, spec_of
from solstice._memory import default_device
from solstice._metrics import Metrics, on_host
from solstice._paths import local_path
from solstice._types import Batch, Outputs

_E = TypeVar("_E", bound=Experiment)


def exported(path: str | PathLike[str]) -> "ExportedRun":
    """`run = solstice.exported("run.zip")`: the steps and the state of an exported run.

    ```python
    run = solstice.exported("run.zip")
    state = run.init()
    for batch in train_ds:
        state, metrics = run.train_step(state, batch)
    ```

    It needs neither your code nor the libraries of the model. Each part of the file has a checksum.
    Nothing in it is unpickled or executed, except the StableHLO of the steps, when they are called.

    Raises:
        ExportError: there is no file, it is damaged or was edited, or this JAX cannot read it.
        ImportError: flatbuffers is not installed: `pip install "./packages/solstice-core[export]"`.
        TypeError, ValueError: `path` is not a path, or is a URL.
    """
    place = local_path(path, "path")
    manifest, members = load(place)
    if manifest.x64 and not jax.config.read("jax_enable_x64"):
        raise ExportError(
            f"{place} has 64-bit numbers, and JAX has 32-bit ones: write "
            f'`jax.config.update("jax_enable_x64", True)` at the start of the program'
        )
    state = unpack_arrays(place, members.get(STATE, b""), manifest.state)
    platform = _platform(place, manifest)
    programs = {
        name: _program(place, name, members.get(member_of(platform, name), b""), manifest)
        for name in manifest.programs
    }
    return ExportedRun(place, manifest, state, programs)


class ExportedRun:
    """`solstice.exported("run.zip")`: the steps and the state of a run, without its code.

    Its steps are pure functions of a state, a dict of arrays by path, such as
    `learner/params/Dense_0/kernel`. PRNG keys are their numbers. They work under `jax.jit`.

    Attributes:
        path: the file.
        manifest: the content of its `manifest.json`: versions, platforms, the arrays by path, and
            how long JAX reads it.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        state: dict[str, np.ndarray[Any, Any]],
        programs: dict[str, Callable[..., Any]],
    ) -> None:
        self.path, self.manifest = path, manifest
        self._state, self._programs = state, programs
        # One for all steps, because metrics with other functions would be of another structure.
        self._metrics = {prefix: _Functions(self, prefix) for prefix in ("train", "eval")}

    def __repr__(self) -> str:
        about = self.manifest
        steps = [
            f"  {name}({', '.join(map(str, about.programs[name].takes.values()))})"
            for name in about.programs
            if name.endswith("_step")
        ]
        return "\n".join(
            [
                f"{self.path}: {about.experiment}, exported at {about.exported_at} by jax "
                f"{about.versions.get('jax')} for {', '.join(about.platforms)}",
                *steps,
                about.readable,
            ]
        )

    def init(self) -> dict[str, Array]:
        """`state = run.init()`: the state at the export, new arrays in each call."""
        return {name: jax.device_put(x, may_alias=False) for name, x in self._state.items()}

    def train_step(
        self, state: Mapping[str, Any], batch: Batch
    ) -> tuple[dict[str, Array], "ExportedMetrics"]:
        """`state, metrics = run.train_step(state, batch)`: one update on one batch.

        Raises:
            DataError: the batch has other shapes or dtypes than at the export.
            ExportError: `state` is not a state of this run.
        """
        return self._step("train", state, batch)

    def eval_step(
        self, state: Mapping[str, Any], batch: Batch
    ) -> tuple[dict[str, Array], "ExportedMetrics"]:
        """`state, metrics = run.eval_step(state, batch)`: evaluate one batch.

        Give the returned state to the next `eval_step`, and drop it after the last one.

        Raises:
            DataError, ExportError: as in `train_step`.
        """
        return self._step("eval", state, batch)

    def predict_step(self, state: Mapping[str, Any], batch: Batch) -> Outputs:
        """`outputs = run.predict_step(state, x)`: an array, or a dict of arrays by path.

        The batch is one as at the export, or the only array of it on which predictions depend.

        Raises:
            DataError: as in `train_step`.
            ExportError: as in `train_step`; or the run has no predict step.
        """
        return self._call("predict_step", state, batch)

    def restore(self, state: Mapping[str, Any], like: _E) -> _E:
        """`exp = run.restore(state, like=make())`: the Experiment in this state, with your code.

        Args:
            state: a state of this run.
            like: an Experiment of the exported kind, set up.

        Raises:
            ExportError: `state` is not a state of this run, or `like` has other arrays.
        """
        self._check("state", state, self.manifest.state, ExportError)
        found = _tree.leaves_by_slashes(like)
        missing = {*self.manifest.state} - {*found}
        if missing:
            raise ExportError(
                f"`like` has no `{min(missing)}`, which is in the state of {self.path}"
            )
        leaves = [_restored(leaf, state.get(name)) for name, leaf in found.items()]
        return _tree.unflatten(_tree.structure(like), leaves)

    def _step(
        self, prefix: str, state: Mapping[str, Any], batch: Batch
    ) -> tuple[dict[str, Array], "ExportedMetrics"]:
        new, arrays = self._call(f"{prefix}_step", state, batch)
        return new, ExportedMetrics(arrays, self._metrics[prefix])

    def _call(self, name: str, state: Mapping[str, Any], batch: Batch) -> Any:
        function, about = self.function(name), self.manifest.programs[name]
        given = _inputs(batch, about.takes, has_more=name == "predict_step")
        self._check("state", state, self.manifest.state, ExportError)
        self._check(f"the batch of {name}", given, about.takes, DataError)
        return function(dict(state), only(given))

    def function(self, name: str) -> Callable[..., Any]:
        """`run.function("train_step")`: a program of the file, for a `jax.jit` of your own.

        Raises:
            ExportError: the file has no such program; the message says why, if it is known.
        """
        if name not in self._programs:
            why = self.manifest.left_out.get(name, f"it has {', '.join(self._programs)}")
            raise ExportError(f"{self.path} has no {name}: {why}")
        return self._programs[name]

    def _check(
        self, what: str, given: Mapping[str, Any], specs: Mapping[str, Spec], error: type[Exception]
    ) -> None:
        """Raises an error unless the arrays are of these types."""
        if not isinstance(cast("Any", given), Mapping):
            raise error(f"{what} must be a dict of arrays by path; it is a {type(given).__name__}")
        for name in [*specs, *given]:
            spec = specs.get(name)
            found = type_of(given[name]) if name in given else None
            if spec is None or found is None or not _fits(found, spec):
                is_now = "missing" if found is None else spec_of(found)
                raise error(
                    f"{what} does not fit {self.path}: `{name}` must be {spec or 'left out'}; it "
                    f"is {is_now}"
                )


class ExportedMetrics(Metrics):
    """The metrics of a step of an exported run: `merge` those of several batches, and `compute`.

    Attributes:
        arrays: the sums and counts by path.
    """

    arrays: dict[str, Array]
    functions: "_Functions" = eqx.field(static=True)

    def merge(self, other: Self, /) -> Self:
        """`total = total.merge(metrics)`: the metrics of both sets of examples.

        Raises:
            ExportError: the metrics of this run grow.
        """
        if not self.arrays:
            return self
        return type(self)(self.functions["merge"](self.arrays, other.arrays), self.functions)

    def compute(self) -> dict[str, Any]:
        """`metrics.compute()["accuracy"]`: the final values by name.

        Raises:
            ExportError: the metrics of this run cannot be computed by a program.
        """
        return on_host(self.functions["compute"](self.arrays)) if self.arrays else {}


class _Functions:
    """The programs for the metrics of one step."""

    def __init__(self, run: ExportedRun, prefix: str) -> None:
        self._run, self._prefix = run, prefix

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self._run.function(f"{self._prefix}_{name}")


def _platform(path: Path, manifest: Manifest) -> str:
    """The platform here, by the name that `jax.export` has for it.

    Raises:
        ExportError: the run was not exported for it.
    """
    found = jax.default_backend()
    if found == "gpu":
        found = "rocm" if "rocm" in default_device().client.platform_version.lower() else "cuda"
    if found not in manifest.platforms:
        raise ExportError(
            f"{path} was exported for {', '.join(manifest.platforms)}, and JAX runs on {found} "
            f'here: export it with `platforms=[..., "{found}"]`'
        )
    return found


def _program(path: Path, name: str, content: bytes, manifest: Manifest) -> Callable[..., Any]:
    check_flatbuffers()
    try:
        return jax.jit(cast("Any", jax_export).deserialize(bytearray(content)).call)
    except Exception as error:  # JAX has several
        raise ExportError(
            f"jax {jax.__version__} cannot read {name} of {path}: "
            f"{str(error).rstrip('.')}. {manifest.readable}"
        ) from error


def _inputs(batch: Batch, takes: Mapping[str, Spec], *, has_more: bool) -> dict[str, Any]:
    """The arrays of a batch by path; one alone may have another path, and a batch may have more."""
    found = _tree.leaves_by_slashes(arrays_of(_tree.map(as_array, batch)))
    if len(found) == len(takes) == 1:
        return dict(zip(takes, found.values(), strict=True))
    return {name: x for name, x in found.items() if name in takes or not has_more}


def _fits(found: Any, spec: Spec) -> bool:
    shape = [*found.shape]
    is_alike = len(shape) == len(spec.shape) and all(
        isinstance(axis, str) or size == axis for size, axis in zip(shape, spec.shape, strict=True)
    )
    return is_alike and found.dtype.name == spec.dtype


def _restored(leaf: Any, data: Any) -> Any:
    if data is None:
        return leaf
    return _tree.as_key(data, leaf) if _tree.is_array(leaf) and _tree.is_key(leaf) else data
