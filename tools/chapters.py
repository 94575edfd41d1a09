"""The book's chapters: where they are, and their notebooks."""

import sys
from dataclasses import dataclass
from pathlib import Path

import jupytext
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "_ext"))
from execution_cache import executed_notebook

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Chapter:
    """One page of the book; `number` is its number in the table of contents, None where it has none."""

    book: Path
    docname: str
    number: int | None

    @property
    def path(self):
        """The chapter's file."""
        return self.book / f"{self.docname}.md"

    def read(self):
        """The notebook, unexecuted."""
        return jupytext.read(self.path)

    def executed(self):
        """The notebook with the outputs of its present state, and what they took; None if not executed."""
        return executed_notebook(self.book, self.path)

    def first_lines(self):
        """The line of the file on which each cell's text begins."""
        text, position = self.path.read_text(encoding="utf-8"), 0
        for cell in self.read().cells:
            position = max(position, text.find(cell.source, position))  # not found: it is read with other white space
            yield text.count("\n", 0, position) + 1
            position += len(cell.source)


def is_notebook(path):
    """Whether a Markdown file is a notebook: its header names a kernel."""
    header = path.read_text(encoding="utf-8").split("---\n", 2)
    return len(header) == 3 and not header[0] and "kernelspec" in (yaml.safe_load(header[1]) or {})


def pages(book=ROOT):
    """All pages in the order of ``_toc.yml``, numbered as the site numbers them: on through all numbered parts."""
    toc, found, number = yaml.safe_load((book / "_toc.yml").read_text(encoding="utf-8")), [], 0
    if unknown := set(toc) - {"format", "root", "parts"}:
        raise ValueError(f"_toc.yml: expected format, root and parts, got {sorted(unknown)}")
    found.append(Chapter(book, toc["root"], None))
    for part in toc.get("parts", []):
        for page in part["chapters"]:
            if set(page) != {"file"}:
                raise ValueError(f"_toc.yml: expected chapters of one file each, got {page}")
            number += bool(part.get("numbered", False))
            found.append(Chapter(book, page["file"], number if part.get("numbered", False) else None))
    return found


def chapters(book=ROOT):
    """The pages that are notebooks, in order."""
    return [page for page in pages(book) if is_notebook(page.path)]
