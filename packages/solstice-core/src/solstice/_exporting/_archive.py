"""The file of an exported run: a zip whose manifest has a checksum of each member.

Nothing in it is unpickled. The checksum of the manifest is the comment of the zip, so that the
manifest is plain JSON.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from solstice._errors import ExportError
from solstice._paths import check_file, check_regular
from solstice._schema import SchemaError, read

MANIFEST, STATE = "manifest.json", "state.npz"
FORMAT, VERSION = "solstice-export", 1

_SEAL = f"{FORMAT} sha256 "
_OLDEST = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Spec:
    """The type of an array.

    Attributes:
        dtype: the name of its dtype.
        shape: its shape; an axis of any length has a name.
        impl: the implementation of PRNG keys, of which the array has the numbers.
    """

    dtype: str
    shape: list[int | str]
    impl: str | None = None

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Program:
    """The arguments after the state, and the results, of a program; by path, "" for one array."""

    takes: dict[str, Spec]
    returns: dict[str, Spec]


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        experiment: the name of the class.
        exported_at: the date and the time, in UTC.
        readable: how long JAX reads the file, in words.
        versions: of Python and of the packages.
        platforms: the platforms for which the programs are lowered.
        x64: whether JAX had 64-bit numbers.
        state: each array of the state by path, in the order of `state.npz`.
        programs: the programs by name.
        left_out: what is not in the file, and why.
        members: the SHA-256 of each other member.
    """

    experiment: str
    exported_at: str
    readable: str
    versions: dict[str, str]
    platforms: list[str]
    x64: bool
    state: dict[str, Spec]
    programs: dict[str, Program]
    left_out: dict[str, str]
    members: dict[str, str] = field(default_factory=dict[str, str])
    format: str = FORMAT
    version: int = VERSION


def write(path: Path, manifest: Manifest, members: Mapping[str, bytes]) -> None:
    """Writes the file under another name, and renames it.

    Raises:
        ExportError: another file is there, or the disk fails.
    """
    sums = {name: _sha256(content) for name, content in members.items()}
    text = json.dumps({**asdict(manifest), "members": sums}, indent=1).encode()
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(beside, "w") as archive:
            for name, content in {MANIFEST: text, **members}.items():
                how = zipfile.ZIP_STORED if name == STATE else zipfile.ZIP_DEFLATED
                archive.writestr(zipfile.ZipInfo(name, _OLDEST), content, how)
            archive.comment = f"{_SEAL}{_sha256(text)}".encode()
        beside.replace(path)
    except OSError as error:
        raise ExportError(f"{path} could not be written: {error}") from error
    finally:
        beside.unlink(missing_ok=True)


def check_replaceable(path: Path, who: str) -> None:
    """Raises an error if the file cannot be written, or would replace something else."""
    check_file(path.absolute(), who)
    if path.exists() and not _is_export(path):
        raise ExportError(f"{path} is there and is not an exported run: give another path")


def _is_export(path: Path) -> bool:
    try:
        check_regular(path, "path")
        with zipfile.ZipFile(path) as archive:
            return archive.comment.startswith(_SEAL.encode())
    except (OSError, zipfile.BadZipFile):
        return False


def load(path: Path) -> tuple[Manifest, dict[str, bytes]]:
    """The checked manifest and the other members.

    Raises:
        ExportError: it is not the file of an exported run, or is damaged.
    """
    if not path.exists():
        raise ExportError(f"there is no file {path}")
    found = _members(path)
    try:
        manifest = read(Manifest, json.loads(found.pop(MANIFEST)), "the manifest")
    except (SchemaError, ValueError, RecursionError) as error:
        raise ExportError(f"{path} has an invalid manifest: {error}") from None
    if (manifest.format, manifest.version) != (FORMAT, VERSION):
        raise ExportError(
            f"{path} is of {manifest.format} {manifest.version}; this version of Solstice reads "
            f"{FORMAT} {VERSION}. Use the version that wrote it"
        )
    for name in sorted({*manifest.members} | {*found}):
        given = _sha256(found[name]) if name in found else None
        if given is None or manifest.members.get(name) != given:
            what = "is missing" if given is None else "does not have the checksum of the manifest"
            raise ExportError(f"{path} is damaged: {name} {what}")
    return manifest, found


def _members(path: Path) -> dict[str, bytes]:
    """The content of the members, the manifest of which has the checksum in the comment."""
    try:
        check_regular(path, "path")
        with zipfile.ZipFile(path) as archive:
            comment, names = archive.comment.decode("ascii", "replace"), archive.namelist()
            found = {name: archive.read(name) for name in names}
    except Exception as error:  # zipfile has many for what is damaged
        raise ExportError(f"{path} is not a zip that can be read: {error}") from error
    if not comment.startswith(_SEAL) or MANIFEST not in found:
        raise ExportError(f"{path} is not an exported run: `solstice.export` writes one")
    if len(found) < len(names) or comment != f"{_SEAL}{_sha256(found[MANIFEST])}":
        raise ExportError(f"{path} is damaged: {MANIFEST} has another checksum than the zip says")
    return found


def pack_arrays(arrays: list[np.ndarray[Any, Any]]) -> bytes:
    """Arrays as the bytes of an `.npz`; dtypes of JAX alone as unsigned integers."""
    file = io.BytesIO()
    # 2: of another library, such as ml_dtypes, and `np.load` would not know it.
    np.savez(file, *(x.view(f"u{x.itemsize}") if x.dtype.isbuiltin == 2 else x for x in arrays))
    return file.getvalue()


def unpack_arrays(
    path: Path, content: bytes, specs: Mapping[str, Spec]
) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an `.npz` by path.

    Raises:
        ExportError: they are not those of the manifest.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = [file[f"arr_{i}"].view(spec.dtype) for i, spec in enumerate(specs.values())]
            count = len(file.files)
    except Exception as error:  # of NumPy and zipfile
        raise ExportError(f"{path} is damaged: {STATE} cannot be read: {error}") from error
    found = dict(zip(specs, arrays, strict=True))
    for name, spec in specs.items():
        if [*found[name].shape] != spec.shape:
            raise ExportError(f"{path} is damaged: `{name}` is not {spec}, as the manifest says")
    if count != len(specs):
        raise ExportError(f"{path} is damaged: {STATE} has {count} arrays, and not {len(specs)}")
    return found


def member_of(platform: str, name: str) -> str:
    """`cpu/train_step.stablehlo`: the member of a program."""
    return f"{platform}/{name}.stablehlo"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
