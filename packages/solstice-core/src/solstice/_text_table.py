"""Text tables: rows of cells as lines with aligned columns."""

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = ()) -> list[str]:
    """`aligned([["name", "1"], ["n", "22"]], left=[0])`: the rows as lines of text.

    Args:
        rows: the cells of each row.
        left: indices of the columns of words, aligned at the left; others have numbers.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<" if index in left else ">" for index in range(len(widths))]
    line = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    return [line.format(*row).rstrip() for row in rows]


def size_text(size: float, unit: str = "B", smallest: str = "bytes") -> str:
    """A readable size such as `1.5 MB`, in powers of 1,000."""
    units = [smallest, *(f"{prefix}{unit}" for prefix in ("k", "M", "G", "T", "P"))]
    while size >= 999.5 and len(units) > 1:  # `.3g` prints 1e+03 from there on
        size /= 1000
        units.pop(0)
    return f"{size:,.3g} {units[0]}"
