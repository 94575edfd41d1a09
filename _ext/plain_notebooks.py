"""Publish the plain notebooks beside the pages, with buttons that download them or open them in Colab.

The Colab button stands where the address of the repository is known; it opens what the deployment puts on `gh-pages`.
"""

import sys
from pathlib import Path

from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from make_notebooks import ConversionError, make_notebooks, notebook_path
from repository import find_repository

logger = logging.getLogger(__name__)


def colab_address(repository, docname):
    """Where Colab opens the published notebook of a chapter."""
    return f"https://colab.research.google.com/github/{repository}/blob/gh-pages/notebooks/{notebook_path(docname)}"


def _add_buttons(app, pagename, templatename, context, doctree):
    downloads = next((b for b in context.get("header_buttons", []) if b.get("label") == "download-buttons"), None)
    if downloads is None or "kernelspec" not in app.env.metadata[pagename]:
        return
    button = {
        "type": "link",
        "url": context["pathto"](f"notebooks/{notebook_path(pagename)}", 1),
        "text": ".ipynb",
        "icon": "fas fa-code",
        "tooltip": "Download this chapter as a notebook",
        "label": "download-notebook-button",
    }
    downloads["buttons"].insert(0, button)
    if repository := find_repository(app.srcdir):
        colab = {
            "type": "link",
            "url": colab_address(repository, pagename),
            "text": "Colab",
            "icon": "fas fa-rocket",
            "tooltip": "Run this chapter in Colab",
            "label": "colab-button",
        }
        context["header_buttons"].insert(0, colab)


def _write(app, exception):
    if exception or app.builder.format != "html":
        return
    try:
        make_notebooks(Path(app.srcdir), Path(app.outdir) / "notebooks")
    except ConversionError as error:
        logger.warning("%s", error, type="notebooks")


def setup(app):
    app.connect("html-page-context", _add_buttons, priority=600)  # the theme's own come at 501
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True}
