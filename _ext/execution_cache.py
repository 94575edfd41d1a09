"""Keep the outputs of chapters in a folder named after what they depend on, so that none is ever stale.

The cache of MyST-NB knows a notebook by its code cells. What the cells import is not part of them: this names the cache
after a digest of the package and of the pinned requirements too.
"""

import hashlib
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import jupytext
from jupyter_cache import get_cache
from nbformat import NotebookNode

KEPT = 4  # states of the package to come back to, such as another branch's, beside the present one
PACKAGE = Path(find_spec("ntk_helpers").origin).parent


def cache_folder(book):
    """Folder with the outputs of the book's chapters for the present state of the package and its pins."""
    book, digest = Path(book), hashlib.sha256()
    sources = sorted(p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix != ".pyc")
    for path in [*sources, PACKAGE.parent / "requirements.txt"]:
        digest.update(path.relative_to(PACKAGE.parent).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return book / "_build" / ".jupyter_cache" / digest.hexdigest()[:16]


class Executed(NamedTuple):
    """A chapter with the outputs of its present state, and the seconds that they took."""

    notebook: NotebookNode
    seconds: float

    @property
    def run_time(self):
        """As a reader is told."""
        return f"{self.seconds:.0f} s"


def executed_notebook(book, chapter):
    """The file `chapter` of a book, `Executed`; None where its present state has not been."""
    if not (folder := cache_folder(book)).exists():
        return None
    cache = get_cache(folder)
    try:
        record, notebook = cache.merge_match_into_notebook(jupytext.read(chapter))
    except KeyError:
        return None
    return Executed(notebook, cache.get_cache_record(record).data["execution_seconds"])


def executed_page(app, docname):
    """A page that Sphinx builds, `Executed`; None where it is no notebook, or has not been."""
    if "kernelspec" not in app.env.metadata[docname]:
        return None
    return executed_notebook(app.srcdir, app.env.doc2path(docname))


def _set_cache(app, config):
    folder = cache_folder(app.srcdir)
    config.nb_execution_cache_path = str(folder)
    os.environ["TQDM_DISABLE"] = "1"  # for the kernels: a progress bar is no output of a chapter
    others = sorted((p for p in folder.parent.glob("*") if p != folder), key=lambda p: p.stat().st_mtime)
    for old in others[:-KEPT]:
        shutil.rmtree(old)


def setup(app):
    # Before MyST-NB reads its configuration, which it does at the builder's start.
    app.connect("config-inited", _set_cache, priority=400)
    return {"parallel_read_safe": True}
