"""`python tests/support/first_blocks.py`: run the first Python block of each page.

`--install` prints the line of the README that installs what they need; `nox -s first_blocks` runs
both.
"""

import os
import re
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "docs/index.md",
    "docs/getting_started.md",
    "docs/primer.md",
    "docs/stages.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs/from").glob("*.md")),
]
WITH_THE_LINE = ["README.md", "docs/index.md", "docs/getting_started.md"]


def first(language: str, page: str) -> str:
    """The first block of a page in this language."""
    found = re.search(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.M)
    if found is None:
        sys.exit(f"{page} has no block of {language}")
    return found[1]


def install_line() -> str:
    """The command of the README, which all pages repeat."""
    lines = {
        page: re.findall(r"^pip install \"\./(?:.*\\\n)*.*", (ROOT / page).read_text(), re.M)
        for page in WITH_THE_LINE
    }
    wrong = {
        page: found
        for page, found in lines.items()
        if found[:1] != lines["README.md"][:1] or not found
    }
    if wrong:
        sys.exit(f"these pages do not install as the README does: {wrong}")
    return lines["README.md"][0]


def main() -> None:
    """Run the blocks, each in a folder and with names of its own."""
    if sys.argv[1:] == ["--install"]:
        print(install_line())
        return
    for page in PAGES:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            exec(compile(first("python", page), page, "exec"), {"__name__": "__main__"})
            os.chdir(ROOT)
        print(f"{page}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
