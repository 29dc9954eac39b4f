"""A bucket in memory, for `etils.epath` through fsspec: it fails or dies at any operation."""

import io

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class Killed(BaseException):
    """The process has died: nothing that it does has an effect any more."""


class Bucket(MemoryFileSystem):
    """Objects as in a cloud: each appears whole when it is closed, and lists may be old."""

    protocol = "s3"
    cachable = False
    objects: dict[str, bytes] = {}
    done: list[str] = []
    fault: tuple[int | str, BaseException] | None = None
    is_down = False
    missing: type[Exception] = FileNotFoundError

    @classmethod
    def empty(cls):
        cls.objects, cls.lists = {}, {}
        MemoryFileSystem.store.clear()
        cls.fail(None, None)

    @classmethod
    def fail(cls, at, error):
        """Raise `error` before operation number `at`, from 0, or before the first of that kind.

        After a `Killed`, all later ones raise it too.
        """
        cls.done, cls.fault, cls.is_down = [], None if error is None else (at, error), False

    @classmethod
    def do(cls, what, path):
        number = len(cls.done)
        cls.done.append(f"{what} {path}")
        if cls.fault is not None:
            at, error = cls.fault
            if cls.is_down or at in (number, what):
                cls.is_down = isinstance(error, Killed)
                raise error

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).split("://")[-1].strip("/")

    def invalidate_cache(self, path=None):
        type(self).lists = {}

    def ls(self, path, detail=True, **kwargs):
        path = self._strip_protocol(path)
        if path not in self.lists:
            self.do("list", path)
            self.lists[path] = self._list(path)
        found = self.lists[path]
        if not found:
            raise self.missing(path)
        return found if detail else [about["name"] for about in found]

    def _list(self, path):
        found = {}
        for name, data in self.objects.items():
            if name == path or name.startswith(f"{path}/"):
                first = name[len(path) :].split("/")[1:2]
                child = "/".join([path, *first])
                kind = "file" if child == name else "directory"
                found[child] = {"name": child, "size": len(data), "type": kind}
        return [*found.values()]

    def _open(self, path, mode="rb", **kwargs):
        path = self._strip_protocol(path)
        if mode == "wb":
            self.do("open", path)
            return _Upload(self, path)
        self.do("read", path)
        if path not in self.objects:
            raise self.missing(path)
        return io.BytesIO(self.objects[path])

    def exists(self, path, **kwargs):
        raise AssertionError("it takes every error for an answer")

    def info(self, path, **kwargs):
        path = self._strip_protocol(path)
        for about in self._list(path):
            return about if about["name"] == path else {**about, "name": path, "type": "directory"}
        raise self.missing(path)

    def rm(self, path, recursive=False, maxdepth=None):
        path = self._strip_protocol(path)
        self.do("remove", path)
        if path not in self.objects:
            raise self.missing(path)
        del self.objects[path]
        self.invalidate_cache()


class _Upload(io.BytesIO):
    def __init__(self, bucket, path):
        super().__init__()
        self._bucket, self._path = bucket, path

    def close(self):
        if not self.closed:
            data = self.getvalue()
            super().close()
            self._bucket.do("close", self._path)
            self._bucket.objects[self._path] = data
            self._bucket.invalidate_cache()


class Plain(MemoryFileSystem):
    """The file system in memory that fsspec has."""

    protocol = ("gcs", "gs")

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).split("://")[-1])


def install():
    """From now on, `s3://` is a Bucket, and `gs://` is Plain."""
    fsspec.register_implementation("s3", Bucket, clobber=True)
    fsspec.register_implementation("gcs", Plain, clobber=True)
