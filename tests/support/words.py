"""`python tests/support/words.py`: how often the pages use that, which, what and whose.

These words open clauses, and many of them make a page slow to read. The goal is at most 1.5 of 100
words of prose. It is a guide: nothing fails above it. Give paths to measure other pages, and
`--show` to see the sentences.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/index.md", "docs/house.md", "docs/contract.md", "docs/design.md"]
GOAL = 1.5

NOT_PROSE = re.compile(
    r"""
      ^[ ]*```.*?^[ ]*```     # blocks of code
    | <!--.*?-->
    | ^\|[^\n]*             # tables
    | ^[ ]*</?[a-z]+>[^\n]*  # tables in HTML
    | ^\#[^\n]*             # headings
    | `[^`]*`                # names in code
    | \]\([^)]*\)           # addresses of links
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
COUNTED = re.compile(r"\b(?:that|which|what|whose)\b", re.IGNORECASE)


def prose(text: str) -> str:
    """The sentences of a page in Markdown, without code, tables and headings."""
    return NOT_PROSE.sub(" ", text)


def share(text: str) -> float:
    """The counted words, per 100 words of prose."""
    words = prose(text)
    return 100 * len(COUNTED.findall(words)) / max(len(WORD.findall(words)), 1)


def sentences(text: str) -> list[str]:
    """The sentences with a counted word."""
    flat = re.sub(r"\s+", " ", prose(text))
    return [one for one in re.split(r"(?<=[.:;?!]) ", flat) if COUNTED.search(one)]


def main(arguments: list[str]) -> None:
    """Prints a line for each page, and the sentences on request."""
    pages = [one for one in arguments if one != "--show"] or PAGES
    for page in pages:
        text = (ROOT / page).read_text()
        print(f"{share(text):5.2f}  {page}{'' if share(text) <= GOAL else f'  (above {GOAL})'}")
        if "--show" in arguments:
            print("".join(f"         {one}\n" for one in sentences(text)), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
