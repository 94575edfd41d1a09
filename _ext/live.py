"""Live figures: the directive ``live``, and the script of the pages that have one.

The files in `_assets/live/` are joined into one script, which also a page on disk can load. Where it runs, the picture
from the notebook, a cell with the tag ``still``, gives way to the figure.
"""

from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import ReferenceRole, SphinxDirective

FOLDER = Path(__file__).parents[1] / "_assets" / "live"
PARTS = ["kernel", "dynamics", "networks", "draw", "scenes", "playground", "engine"]  # each uses those before it
FIGURES = ["playground"]


class live(nodes.General, nodes.Element):
    """A live figure, by its name."""


class Live(SphinxDirective):
    required_arguments = 1

    def run(self):
        name = self.arguments[0]
        if name not in FIGURES:
            raise self.error(f"live: expected one of {FIGURES}, got {name!r}")
        return [live(name=name)]


class Scene(ReferenceRole):
    """A link that sets the playground's scene: words, and the settings in angle brackets, as in its address."""

    def run(self):
        return [nodes.reference("", self.title, internal=True, refuri="#play:" + "".join(self.target.split()))], []


def script():
    """All parts, in a scope of their own."""
    sources = [(FOLDER / f"{part}.js").read_text(encoding="utf-8") for part in PARTS]
    return "(() => {\n'use strict'\n" + "\n".join(sources) + "})()\n"


def _visit(translator, node):
    translator.body.append(f'<div class="live" data-live="{node["name"]}"></div>')
    raise nodes.SkipNode


def _write_script(app):
    if app.builder.format == "html":
        static = Path(app.outdir) / "_static"
        static.mkdir(parents=True, exist_ok=True)
        (static / "live.js").write_text(script(), encoding="utf-8")


def _load_script(app, pagename, templatename, context, doctree):
    if doctree is not None and next(doctree.findall(live), None):
        app.add_js_file("live.js", loading_method="defer")
        app.add_css_file("live.css")


def setup(app):
    app.add_node(live, html=(_visit, None))
    app.add_directive("live", Live)
    app.add_role("scene", Scene())
    app.connect("builder-inited", _write_script)
    app.connect("html-page-context", _load_script)
    return {"parallel_read_safe": True}
