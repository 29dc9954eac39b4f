"""Hints in errors about labels, masks and scores: code that converts the given ones.

Each function returns a sentence to append to an error, or "" if no correct code is known. The code
uses the names `x`, `labels`, `targets`, `mask`, `preds` and `scores`. The hints look at values,
because the meaning of a dtype or shape depends on them. Traced arrays have no values; the sentence
then says for which values its code is right. In a step, text is None, because JAX has no text.
"""

from typing import Any, TypeGuard, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from solstice import _tree
from solstice._numbers import kind_of
from solstice._types import AnyArray

_SEVERAL_CLASSES = ". Labels of several classes are for ClassificationExperiment"
_SEVERAL_LABELS = ". Several labels an example are for MultilabelClassificationExperiment"
_ONE_EXAMPLE = (
    ". This is a single example. Stack a list of examples, and choose a batch size: "
    "`tuple(np.stack(part) for part in zip(*examples)), batch_size=32`"
)
_WEIGHTS = ". A mask says which examples count, not how much. Write `weights={code}`"


def class_hint(labels: object) -> str:
    """How to convert labels to classes, integers of shape [n]."""
    code, array = _flat(*_form("labels", labels))
    if labels is None:
        return _names_hint(code)
    if array is None or array.ndim not in (1, 2):
        return _ONE_EXAMPLE if array is not None and array.ndim == 0 else ""
    # Not of shape [n, 1], which `_flat` has cut: its `argmax` would be 0 for all.
    return _rows_hint(code, array) if array.ndim == 2 else _integers_hint(code, array)


def class_range_hint(labels: AnyArray, num_classes: int) -> str:
    """How to bring integers outside [0, num_classes) inside."""
    values = np.unique(labels)
    bad = values[(values < 0) | (values >= num_classes)]
    if num_classes == 2 and values.tolist() == [-1, 1]:
        return ". Where 1 is the second class, write `(labels > 0).astype(int)`"
    if len(bad) == 1 and (bad[0] < 0 or bad[0] == 255):
        return _ignored_hint("labels", "labels", bad[0])
    if bad[0] < 0:
        return ". Fix the labels"
    begins_with_1 = values[0] >= 1 and values[-1] == num_classes
    less = ". If they start with 1, write `labels - 1`" if begins_with_1 else ""
    return f". Give num_classes={values[-1] + 1}, or fix the labels{less}"


def binary_hint(labels: object) -> str:
    """How to convert labels to 0 or 1, of shape [n]."""
    code, array = _flat(*_form("labels", labels))
    if labels is None:
        return ". Text becomes labels by `labels == np.unique(labels)[-1]`, of the whole data set"
    if array is None or array.ndim not in (1, 2):
        return _ONE_EXAMPLE if array is not None and array.ndim == 0 else ""
    if array.ndim == 1:
        return binary_values_hint(array, code)
    hint = _rows_hint(code, array)
    return hint if array.shape[1] == 2 or hint in ("", _SEVERAL_LABELS) else _SEVERAL_CLASSES


def binary_rows_hint(labels: object, num_labels: int) -> str:
    """How to convert labels to 0 or 1, of shape [n, num_labels]."""
    code, array = _form("labels", labels)
    if array is None:
        return ""
    if array.ndim == 3 and array.shape[2] == 1:
        code, array = f"{code}[..., 0]", array[..., 0]
    elif array.ndim == 1 and num_labels == 1:
        code, array = f"{code}[:, None]", array[:, None]
    if array.ndim == 1 and _is_whole(array) and _is_within(array, num_labels):
        return f". Classes become rows of labels by `np.eye({num_labels}, dtype=bool)[{code}]`"
    fits = array.ndim == 2 and array.shape[1] == num_labels
    return binary_values_hint(array, code) if fits else ""


def binary_values_hint(array: AnyArray, code: str = "labels") -> str:
    """How to convert the values of labels to 0 or 1; `code` has them in the right shape."""
    if _is_whole(array) and _is_within(array, 2):
        return f". Write `{code}`"
    if _is_traced(array):
        return f". Zeros and ones become booleans by `{code}.astype(bool)`"
    if _is_text(array):
        names = np.unique(array)
        return _positive_hint(code, names[-1]) if 1 <= len(names) <= 2 else _SEVERAL_CLASSES
    if not _is_real(array):
        return ""
    values = np.unique(array.astype(float))
    known = values[~np.isnan(values)]
    odd = known[(known != 0) & (known != 1)]
    if len(known) < len(values):
        return "" if len(odd) else _ignored_hint(code, f"{code} == 1", np.nan)
    if not len(odd):
        return f". Write `{code}.astype(bool)`"
    if values[0] >= 0 and values[-1] <= 1:
        return f". Probabilities become labels by `{code} >= 0.5`"
    if len(odd) == 1 and _is_no_label(odd[0], known):
        return _ignored_hint(code, f"{code} == 1", odd[0])
    if len(values) == 2 and np.isfinite(values).all():
        return _positive_hint(code, values[1])
    return _SEVERAL_CLASSES if values[0] >= 0 and _are_whole(values) else ""


def number_hint(targets: object) -> str:
    """How to convert targets to real numbers."""
    code, array = _flat(*_form("targets", targets))
    if array is None or array.ndim == 0 or np.issubdtype(array.dtype, np.complexfloating):
        return ""
    if array.dtype == bool:
        return ". For yes and no there is BinaryClassificationExperiment"
    try:
        array.astype(float)
    except ValueError:  # text that is not a number
        return ""
    return f". Write `{code}.astype('float32')`"


def mask_hint(mask: object) -> str:
    """How to convert a mask of a metric to booleans, one per example."""
    is_list = isinstance(mask, list | tuple)
    code, array = _flat(*_form("mask", mask))
    if array is None or array.ndim == 0:
        return ""
    plain = code
    if is_list:
        code = code.replace("(mask)", "(mask, bool)")
    elif array.dtype != bool:
        code = f"{code}.astype(bool)"
    if code == "mask":
        return ""
    if _is_traced(array) and array.dtype != bool:
        return f". Zeros and ones become booleans by `{code}`"
    if array.dtype == bool or _is_within(array, 2):
        return f". Write `{code}`"
    return _WEIGHTS.format(code=plain)


def shares_hint(given: object, name: str = "mask") -> str:
    """How to convert the mask or weights of a batch to booleans or floats, one per example."""
    is_list = isinstance(given, list | tuple)
    code, array = _flat(*_form(name, given))
    if array is None or array.ndim == 0 or not _is_real(array):
        return ""
    # A third part is weights, of which another batch may have more than 0 and 1.
    may_be_mask = name == "mask" and _is_within(array, 2)
    kind = "bool" if array.dtype == bool or may_be_mask else "'float32'"
    if is_list:
        return f". Write `{code.replace(f'({name})', f'({name}, {kind})')}`"
    if name == "mask" and _is_traced(array) and jnp.issubdtype(array.dtype, jnp.integer):
        return f". Zeros and ones become booleans by `{code}.astype(bool)`"
    if array.dtype == bool or jnp.issubdtype(array.dtype, jnp.floating):
        return f". Write `{code}`" if code != name else ""
    is_mask = ". Write" if kind == "bool" else ". If they are weights, write"
    return f"{is_mask} `{code}.astype({kind})`"


def weights_hint(weights: object, shape: tuple[int, ...], *, by_row: bool) -> str:
    """How to convert weights to this shape; with `by_row`, the first axis suffices."""
    if np.ndim(cast("Any", weights)) == 0:
        return f". Write `jnp.broadcast_to(weights, {shape})`"
    code, array = _flat(*_form("weights", weights))
    shapes = (shape, shape[:1]) if by_row else (shape,)
    fits = array is not None and array.shape in shapes and code != "weights"
    return f". Write `{code}`" if fits else ""


def pair_hint(scores: object, labels: Any, from_logits: bool = False) -> str:
    """How to convert scores and labels to shape [n]."""
    code, one = _flat(*_form("scores", scores))
    if one is not None and one.ndim == 2 and one.shape[1] == 2:
        code, one = "scores[:, 1] - scores[:, 0]" if from_logits else "scores[:, 1]", one[:, 1]
    hint = binary_hint(labels) if np.ndim(labels) > 1 else ""
    if one is None or one.ndim != 1 or one.shape != np.shape(labels)[:1]:
        return ""
    if np.ndim(labels) > 1 and "`" not in hint:
        return hint
    return f". Write `{code}` for the scores{hint}" if code != "scores" else hint


def predictions_hint(preds: object, labels: Any) -> str:
    """How to convert predictions and labels to shape [n]."""
    code, one = _flat(*_form("preds", preds))
    if one is None or one.ndim not in (1, 2) or one.shape[:1] != np.shape(labels)[:1]:
        return ""
    hint = class_hint(labels) if np.ndim(labels) != 1 else ""
    return f". Write `{code}` for the predictions{hint}" if code != "preds" else hint


def _is_traced(array: object) -> TypeGuard[jax.Array]:
    return isinstance(array, Tracer)


def _form(name: str, given: object) -> tuple[str, AnyArray | None]:
    """The code that makes an array of `given`, and the array; None if there is none."""
    if isinstance(given, list | tuple):
        name, given = f"np.asarray({name})", _stacked(given)
    if _is_traced(given):
        return name, given
    array = _tree.to_numpy(given) if hasattr(given, "dtype") else None
    if array is None or array.dtype != object or _is_text(array):
        return name, array
    try:
        return f"{name}.astype(float)", array.astype(float)
    except (TypeError, ValueError):
        return name, None


def _stacked(rows: Any) -> AnyArray | None:
    try:
        return np.asarray(rows)
    except jax.errors.TracerArrayConversionError:  # a list of traced numbers
        return jnp.asarray(rows)
    except ValueError:  # rows of unequal lengths
        return None


def _flat(code: str, array: AnyArray | None) -> tuple[str, AnyArray | None]:
    """The array in shape [n], if all axes but the first have length 1; else unchanged."""
    if array is None or set(array.shape[1:]) != {1}:
        return code, array
    if array.ndim == 2:
        return f"{code}[:, 0]", array[:, 0]
    return f"{code}.reshape(-1)", array.reshape(-1)


def _rows_hint(code: str, rows: AnyArray) -> str:
    """How to convert one row per example to a class."""
    hint = f" become classes by `{code}.argmax(axis=-1)`"
    if _is_traced(rows):
        return f". One-hot labels{hint}"
    if not _is_real(rows):
        return ""
    rows = rows.astype(float)
    are_hot = bool(np.isin(rows, [0, 1]).all())
    if np.all(rows >= 0) and np.allclose(rows.sum(axis=1), 1, atol=0.01):
        return f". One-hot labels{hint}" if are_hot else f". Probabilities{hint}"
    return _SEVERAL_LABELS if are_hot else ""


def _integers_hint(code: str, array: AnyArray) -> str:
    """How to convert one value per example to an integer."""
    if jnp.issubdtype(array.dtype, jnp.integer):
        return f". Write `{code}`"
    if array.dtype == bool:
        return f". Make them integers by `{code}.astype(int)`"
    if _is_traced(array):
        return f". Whole numbers become integers by `{code}.astype(int)`"
    if _is_text(array):
        return _names_hint(code)
    if not _is_real(array):
        return ""
    known = array[~np.isnan(array)].astype(float)
    if _are_whole(known) and len(known) < len(array):
        return _ignored_hint(code, f"np.nan_to_num({code}).astype(int)", np.nan)
    if _are_whole(known):
        return f". Make them integers by `{code}.astype(int)`"
    if len(known) == len(array) and known.min() >= 0 and known.max() <= 1:
        second = f"`({code} >= 0.5).astype(int)`"
        return f". Probabilities of the second class become classes by {second}"
    return ". Numbers are for RegressionExperiment"


def _names_hint(code: str) -> str:
    classes = f"np.unique({code}, return_inverse=True)[1]"
    return f". Text becomes classes by `{classes}`, of the whole data set at once"


def _positive_hint(code: str, value: object) -> str:
    """Suggests the greater of two values as positive, because 'yes', 'true', 1 and 2 are."""
    plain = np.asarray(value, getattr(value, "dtype", object)).item()
    if isinstance(plain, float) and plain.is_integer():
        plain = int(plain)
    return f". Where {plain!r} is the positive class, write `{code} == {plain!r}`"


def _ignored_hint(code: str, labels: str, value: float) -> str:
    """How to mask a value that means "no label"; `labels` is the code for the others."""
    if np.isnan(value):
        return f". Mask the NaNs: `solstice.data.Masked((x, {labels}), ~np.isnan({code}))`"
    kept = f"{code} != {int(value) if float(value).is_integer() else float(value)}"
    return f". If {value:g} is not a label, mask it: `solstice.data.Masked((x, {labels}), {kept})`"


def _is_no_label(value: float, values: np.ndarray[Any, Any]) -> bool:
    """Whether this value beside 0 and 1 likely means "no label", as -100 and 255 do."""
    return value < -1 or (value < 0 and 0 in values) or (value == 255 and 1 in values)


def _is_text(array: AnyArray) -> bool:
    if array.dtype == object:
        return array.size > 0 and all(isinstance(value, str | bytes) for value in array.ravel())
    return array.dtype.kind in "SUT"


def _is_real(array: AnyArray) -> bool:
    return kind_of(array.dtype) in ("bool", "int", "float")


def _is_whole(array: AnyArray) -> bool:
    return kind_of(array.dtype) in ("bool", "int")


def _is_within(array: AnyArray, limit: int) -> bool:
    """Whether all values are integers in [0, limit); True for a traced array."""
    if _is_traced(array):
        return True
    return bool(_is_real(array) and np.isin(array.astype(float), np.arange(limit)).all())


def _are_whole(values: AnyArray) -> bool:
    return bool(np.all(values == np.floor(values)))
