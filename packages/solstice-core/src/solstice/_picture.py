"""Figures; the only module that imports matplotlib."""

import io
from os import PathLike

from solstice._paths import local_path

try:
    from matplotlib.figure import Figure as Figure
except ImportError as error:
    raise ImportError("plots need matplotlib: `pip install matplotlib`") from error


class Picture(Figure):
    """A figure that a notebook displays even if pyplot is not in use."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def save(figure: Figure, path: str | PathLike[str] | None) -> Figure:
    """Writes the picture if there is a path, and returns the figure."""
    if path is not None:
        figure.savefig(local_path(path, "path"), dpi=150)
    return figure
