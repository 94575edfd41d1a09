"""Serve MathJax from the site itself: the bundle and the fonts that a page needs, out of an installed package."""

import shutil
from importlib.metadata import distribution
from pathlib import Path

BUNDLE = "tex-mml-chtml.js"
FONTS = "output/chtml/fonts/woff-v2"
# A page has hundreds of formulas. In the running text none is a stop of the keyboard; their menu is a click away.
NO_STOPS = """if (window.MathJax) MathJax.startup = {
    pageReady: () => MathJax.startup.defaultPageReady().then(
        () => document.querySelectorAll("mjx-container:not([display])").forEach(formula => formula.tabIndex = -1)),
}"""


def _copy(app):
    if app.builder.format != "html":
        return
    source = Path(distribution("sphinx-mathjax-offline").locate_file("sphinx-mathjax-offline/static/mathjax"))
    target = Path(app.outdir) / "_static" / "mathjax"
    shutil.copytree(source / FONTS, target / FONTS, dirs_exist_ok=True)
    shutil.copy2(source / BUNDLE, target / BUNDLE)


def setup(app):
    app.connect("builder-inited", _copy)
    app.add_js_file(None, body=NO_STOPS, priority=600)  # after Sphinx's settings
    return {"parallel_read_safe": True}
