"""The book's chapters: where they are, and their notebooks."""

import sys
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import jupytext
import yaml
from jupytext.myst import myst_to_notebook
from sphinx_external_toc.parsing import parse_toc_yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "_ext"))
from execution_cache import executed_notebook

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Chapter:
    """One page of the book.

    `number` is its number in the table of contents, None where it has none; a page that goes deeper has that of its
    chapter, whose docname is its `parent`.
    """

    book: Path
    docname: str
    number: int | None
    parent: str | None = None

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

    def lines(self):
        """The lines of the file on which its cells begin."""
        text = self.path.read_text(encoding="utf-8")
        return myst_to_notebook(text, add_source_map=True).metadata["source_map"]


def is_notebook(path):
    """Whether a Markdown file is a notebook: its header names a kernel."""
    header = path.read_text(encoding="utf-8").split("---\n", 2)
    return len(header) == 3 and not header[0] and "kernelspec" in (yaml.safe_load(header[1]) or {})


def pages(book=ROOT):
    """All pages in the order of ``_toc.yml``, numbered as the site numbers them: on through all numbered parts."""
    toc, numbers = parse_toc_yaml(book / "_toc.yml"), count(1)
    found = [Chapter(book, toc.root.docname, None)]
    for part in toc.root.subtrees:
        for docname in part.files():
            number = next(numbers) if part.numbered else None
            found += _with_deeper(toc, Chapter(book, docname, number))
    return found


def _with_deeper(toc, page):
    """A page, and then the pages nested below it."""
    yield page
    for docname in toc[page.docname].child_files():
        yield from _with_deeper(toc, replace(page, docname=docname, parent=page.docname))


def chapters(book=ROOT):
    """The pages that are notebooks, in order."""
    return [page for page in pages(book) if is_notebook(page.path)]
