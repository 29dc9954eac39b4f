"""`python tests/support/house.py`: measures of the code of solstice-core, and a map of it.

With `--write`, the map in `docs/house.md` is made from the docstrings of the modules.
"""

import ast
import io
import re
import statistics
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

FLOORS = (
    "_agreement _arguments _batch _better _bounds _console _digests _errors _finite _hints "
    "_hooks _hyperparameters _keywords _left_out _memory _numbers _paths _per_member _picture "
    "_plain _rates _replace _schema _service _shares _signatures _stored _sums _text_table "
    "_traces _tree _types _worker",
    "_callback _compiles _experiment _history_rows _mapped _metrics _monitor _record _saver data",
    "_engine _sources",
    "_loop",
    "__init__ _options _own_history _own_run _runs _session _train _trainer",
    "__main__ _comparison _exporting callbacks checkpoint compat distributed experiments history "
    "inspect layouts loggers metrics new_adapter population resampling runs",
    "testing",
)
"""The files and folders of the package: each imports from its own floor and from those before it.

The fifth floor completes what `import solstice` loads. The ready-made parts are above it.
"""

ON_FIRST_USE = ("_loop/_branch.py", "_loop/_find.py", "_loop/_resume.py")
"""Modules that a function of their own floor imports, so that they may import ready-made parts."""

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "packages/solstice-core/src/solstice"
PAGE = ROOT / "docs/house.md"
BEGIN, END = "<!-- map: begin -->\n", "<!-- map: end -->\n"


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path.relative_to(SOURCE))

    @property
    def folder(self) -> tuple[str, ...]:
        return self.path.relative_to(SOURCE).parent.parts

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def summary(self) -> str:
        docstring = ast.get_docstring(self.tree) or ""
        return docstring.split("\n\n")[0].replace("\n", " ")


@cache
def modules() -> list[Module]:
    return [Module(p) for p in sorted(SOURCE.rglob("*.py")) if "template" not in p.parts]


def imported(module: Module) -> Iterator[tuple[str, ...]]:
    """The modules of the package that a module imports, by their parts, types-only ones too."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("solstice"):
            parts = tuple((node.module or "").split(".")[1:])
            found: set[tuple[str, ...]] = set()
            for alias in node.names:
                deeper = SOURCE.joinpath(*parts, alias.name)
                is_module = deeper.with_suffix(".py").exists() or deeper.is_dir()
                found.add((*parts, alias.name) if is_module else parts)
            yield from found


def private_imports() -> list[str]:
    """Imports of a private module inside another folder than that of the importer."""
    found: list[str] = []
    for module in modules():
        for parts in imported(module):
            folder = parts[:-1]
            is_other = bool(folder) and module.folder[: len(folder)] != folder
            if is_other and parts[-1].startswith("_"):
                found.append(f"{module.name} imports {'.'.join(parts)}")
    return found


def unit_of(module: Module) -> str:
    """The folder of a module, or its own name if it is in none."""
    return module.folder[0] if module.folder else module.path.stem


class _AtImport(ast.NodeVisitor):
    """The files and folders that a module loads when it is imported."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Skips a function, whose imports run with its first call."""

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.dump(node.test):
            self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        package, *parts = (node.module or "").split(".")
        if package == "solstice":
            self.found |= {parts[0]} if parts else {alias.name for alias in node.names}


def climbs() -> list[str]:
    """Imports from a higher floor, when a module is loaded."""
    floor = {unit: n for n, units in enumerate(FLOORS) for unit in units.split()}
    found: list[str] = []
    for module in (m for m in modules() if m.name not in ON_FIRST_USE):
        visitor, unit = _AtImport(), unit_of(module)
        visitor.visit(module.tree)
        found += [
            f"{module.name} imports {other}"
            for other in sorted(visitor.found)
            if floor.get(other, 0) > floor.get(unit, 0)
        ]
    return [*found, *(f"{unit} has no floor" for unit in {*map(unit_of, modules())} - {*floor})]


def folder_cycles() -> list[tuple[str, str]]:
    """Pairs of folders, or of files beside them, that import each other."""
    edges: set[tuple[str, str]] = set()
    for module in modules():
        here = unit_of(module)
        edges |= {(here, parts[0]) for parts in imported(module) if parts and parts[0] != here}
    return sorted({(a, b) for a, b in edges if a < b and (b, a) in edges})


def _is_data_class(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.dump(decorator) for decorator in node.decorator_list)


def attributes() -> dict[str, int]:
    """How many attributes each class sets on self, outside data classes."""
    found: dict[str, int] = {}
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and not _is_data_class(node):
                names = {
                    target.attr
                    for target in ast.walk(node)
                    if isinstance(target, ast.Attribute)
                    and isinstance(target.ctx, ast.Store)
                    and isinstance(target.value, ast.Name)
                    and target.value.id == "self"
                }
                found[f"{module.name}:{node.name}"] = len(names)
    return found


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    if ast.get_docstring(node) is None:
        return 0
    return (node.body[0].end_lineno or 0) - node.body[0].lineno + 1


def functions() -> dict[str, int]:
    """The lines of each function, without decorators, signature and docstring."""
    found: dict[str, int] = {}
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0].lineno
                size = (node.end_lineno or 0) - first + 1 - _docstring_lines(node)
                found[f"{module.name}:{node.name}:{node.lineno}"] = max(size, 1)
    return found


def annotations() -> tuple[int, int]:
    """How many annotations there are, and how many are a bare `Any`."""
    every: list[ast.expr] = []
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
                every.append(node.annotation)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
                every.append(node.returns)
    return len(every), sum(isinstance(a, ast.Name) and a.id == "Any" for a in every)


def code_and_comments() -> tuple[int, int]:
    """Lines of code, without blank lines, comments and docstrings; and comments."""
    code, comments = set[tuple[str, int]](), 0
    skipped = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for module in modules():
        before = tokenize.NEWLINE
        for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
            is_docstring = token.type == tokenize.STRING and before in skipped
            if token.type == tokenize.COMMENT:
                comments += not re.match(r"#\s*(noqa|pyright|type:)", token.string)
            elif token.type not in skipped and not is_docstring:
                lines = range(token.start[0], token.end[0] + 1)
                code |= {(module.name, line) for line in lines}
            if token.type != tokenize.COMMENT:
                before = token.type
    return len(code), comments


def suppressions() -> int:
    pattern = re.compile(r"#.*(noqa|pyright: *ignore|type: *ignore)")
    return sum(len(pattern.findall(module.text)) for module in modules())


@cache
def measures() -> dict[str, float]:
    """The measures by name, as `python tests/support/house.py` prints them."""
    sizes, (count, bare), (code, comments) = functions(), annotations(), code_and_comments()
    return {
        "modules": len(modules()),
        "lines of code": code,
        "private imports across folders": len(private_imports()),
        "pairs of folders that import each other": len(folder_cycles()),
        "classes with more than 10 attributes": sum(n > 10 for n in attributes().values()),
        "modules over 350 lines": sum(m.text.count("\n") > 350 for m in modules()),
        "percent of annotations that are a bare Any": round(100 * bare / count, 1),
        "suppressions": suppressions(),
        "lines of the median function": statistics.median(sizes.values()),
        "lines of the longest function": max(sizes.values()),
        "comments per 100 lines of code": round(100 * comments / code, 1),
    }


def drawn() -> str:
    """The map: each folder, and the summary of each module in it."""
    lines: list[str] = []
    folders = sorted({m.folder for m in modules()})
    for folder in folders:
        lines += [
            "",
            f"### `{'/'.join(['solstice', *folder])}/`",
            "",
            "| module | what it is |",
            "|---|---|",
        ]
        lines += [
            f"| `{m.path.name}` | {m.summary.replace('|', '/')} |"
            for m in modules()
            if m.folder == folder
        ]
    return "\n".join([*lines[1:], ""])


def main() -> None:
    for name, value in measures().items():
        print(f"{value:>8,}  {name}")
    if "--all" in sys.argv:
        print("\n".join(private_imports()))
    if "--write" in sys.argv:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}{drawn()}{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
