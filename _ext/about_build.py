"""The directive ``{about-build}``: what this build took (chapters), and what it was made of (versions, all)."""

import platform
import re
import sys
from importlib.metadata import requires, version
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst.directives import choice
from repository import commit
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from chapters import chapters

PIN = re.compile(r"^([\w.-]+)==", re.M)
NAME = re.compile(r"^[\w.-]+")


class about_build(nodes.General, nodes.Element):
    """Stands for a table until all chapters have been read."""


class AboutBuild(SphinxDirective):
    required_arguments = 1

    def run(self):
        return [about_build(of=choice(self.arguments[0], list(TABLES)))]


def _chapters(app, docname):
    from ntk_helpers.book.claims import recorded_claims  # imports torch, which few builds need

    yield ["chapter", "run time", "cores", "peak memory", "claims"]
    seconds, claims = 0.0, 0
    for chapter in chapters(Path(app.srcdir)):
        if executed := chapter.executed():
            checked = len(recorded_claims(executed.notebook))
            seconds, claims = seconds + executed.seconds, claims + checked
            uri = app.builder.get_relative_uri(docname, chapter.docname)
            link = nodes.reference("", app.env.titles[chapter.docname].astext(), internal=True, refuri=uri)
            memory = f"{executed.peak_memory / 2**20:,.0f} MiB" if executed.peak_memory else "not measured"
            yield [[link], executed.run_time, str(executed.cores or ""), memory, str(checked)]
    yield ["all", f"{seconds:.0f} s", "", "", str(claims)]


def _versions(app, docname):
    yield ["what", "version"]
    if at := commit(app.srcdir):
        yield ["this book (commit)", at]
    yield ["Python", platform.python_version()]
    direct = {NAME.match(requirement)[0] for requirement in requires("ntk-helpers")}
    yield from ([name, version(name)] for name in sorted(direct))


def _all(app, docname):
    yield ["package", "version"]
    pins = (Path(__file__).parents[1] / "requirements.txt").read_text(encoding="utf-8")
    yield from ([name, version(name)] for name in PIN.findall(pins))


TABLES = {"chapters": _chapters, "versions": _versions, "all": _all}


def table(rows, widths):
    """A table of rows, the first of them its head; a cell is a text, or a list of nodes."""
    head, *body = (nodes.row("", *map(_entry, row)) for row in rows)
    group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in widths), cols=len(widths))
    group += [nodes.thead("", head), nodes.tbody("", *body)]
    return nodes.table("", group)


def _entry(content):
    return nodes.entry("", nodes.paragraph("", "", *([nodes.Text(content)] if isinstance(content, str) else content)))


def _fill(app, doctree, docname):
    for place in list(doctree.findall(about_build)):
        rows = list(TABLES[place["of"]](app, docname))
        place.replace_self(table(rows, [1] * len(rows[0])))


def setup(app):
    app.add_directive("about-build", AboutBuild)
    app.connect("doctree-resolved", _fill)
    return {"parallel_read_safe": True}
