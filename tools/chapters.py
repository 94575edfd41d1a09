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
    """One notebook of the book; `number` is its number in the table of contents, None where it has none."""

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
        """The notebook with the outputs of its present state, and the seconds that took; None if not executed."""
        return executed_notebook(self.book, self.path)


def is_notebook(path):
    """Whether a Markdown file is a notebook: its header names a kernel."""
    header = path.read_text(encoding="utf-8").split("---\n", 2)
    return len(header) == 3 and not header[0] and "kernelspec" in (yaml.safe_load(header[1]) or {})


def chapters(book=ROOT):
    """The chapters in the order of ``_toc.yml``, numbered as the site numbers them: on through all numbered parts."""
    toc, found, number = yaml.safe_load((book / "_toc.yml").read_text(encoding="utf-8")), [], 0
    pages = [(toc["root"], False)]
    if unknown := set(toc) - {"format", "root", "parts"}:
        raise ValueError(f"_toc.yml: expected format, root and parts, got {sorted(unknown)}")
    for part in toc.get("parts", []):
        for page in part["chapters"]:
            if set(page) != {"file"}:
                raise ValueError(f"_toc.yml: expected chapters of one file each, got {page}")
            pages.append((page["file"], part.get("numbered", False)))
    for docname, numbered in pages:
        number += bool(numbered)
        chapter = Chapter(book, docname, number if numbered else None)
        if is_notebook(chapter.path):
            found.append(chapter)
    return found
