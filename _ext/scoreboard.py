"""The directive ``{scoreboard}``: every claim of the book, chapter by chapter, as the present outputs record them."""

import re
from pathlib import Path
from urllib.parse import quote

from about_build import chapters, table
from docutils import nodes
from execution_cache import executed_page
from glued_numbers import typeset
from sphinx.util.docutils import SphinxDirective

TITLE = re.compile(r"^# (.+)$", re.M)


class scoreboard(nodes.General, nodes.Element):
    """Stands for a chapter's claims until all chapters have been read."""


class Scoreboard(SphinxDirective):
    def run(self):
        return [self.section(chapter) for chapter in chapters(Path(self.env.srcdir))]

    def section(self, chapter):
        title = TITLE.search(chapter.path.read_text(encoding="utf-8"))[1]
        name = nodes.make_id(chapter.docname.rsplit("/", 1)[-1])
        body = [nodes.title("", title), scoreboard(docname=chapter.docname)]
        return nodes.section("", *body, ids=[name], names=[name])


def _claims(app, docname, chapter):
    """The rows of a chapter's table; each measured value leads to its claim."""
    from ntk_helpers.book.claims import measured_text, recorded_claims  # imports torch, which few builds need

    yield ["claim", "expected", "measured"]
    executed, page = executed_page(app, chapter), app.builder.get_relative_uri(docname, chapter)
    for record in recorded_claims(executed.notebook) if executed else []:
        statement = nodes.inline("", typeset(record["statement"]) + " ")
        source = nodes.emphasis("", typeset(f"({record['source']})"))
        measured = typeset(measured_text(record))
        link = nodes.reference("", measured, internal=True, refuri=f"{page}#claim-{quote(record['name'])}")
        yield [[statement, source], typeset(record["expected"]), [link]]


def _fill(app, doctree, docname):
    for place in list(doctree.findall(scoreboard)):
        rows = list(_claims(app, docname, place["docname"]))
        uri = app.builder.get_relative_uri(docname, place["docname"])
        number = f"{len(rows) - 1} claim{'s' * (len(rows) != 2)} of "
        link = nodes.reference("", "this chapter", internal=True, refuri=uri)
        board = [table(rows, (6, 2, 2))] if len(rows) > 1 else []
        place.replace_self([nodes.paragraph("", number, link), nodes.container("", *board, classes=["scoreboard"])])


def setup(app):
    app.add_directive("scoreboard", Scoreboard)
    app.connect("doctree-resolved", _fill)
    return {"parallel_read_safe": True}
