"""The directive ``{scoreboard}``: every claim of the book as the present outputs record them, counted and listed."""

import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from urllib.parse import quote

from about_build import table
from docutils import nodes
from execution_cache import executed_page
from glued_numbers import typeset
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from chapters import chapters

TITLE = re.compile(r"^# (.+)$", re.M)


class scoreboard(nodes.General, nodes.Element):
    """Stands for claims of some pages until all have been read."""


class Scoreboard(SphinxDirective):
    def run(self):
        known = chapters(Path(self.env.srcdir))
        counts = scoreboard(of=[chapter.docname for chapter in known])
        return [counts, *(self.section(chapter) for chapter in known)]

    def section(self, chapter):
        title = TITLE.search(chapter.path.read_text(encoding="utf-8"))[1]
        name = nodes.make_id(chapter.docname.rsplit("/", 1)[-1])
        body = [nodes.title("", title), scoreboard(of=chapter.docname)]
        return nodes.section("", *body, ids=[name], names=[name])


@cache  # they are counted, and then listed
def _records(app, docname):
    from ntk_helpers.book.claims import recorded_claims  # imports torch, which few builds need

    executed = executed_page(app, docname)
    return recorded_claims(executed.notebook) if executed else []


def _counts(app, docname, chapters):
    """The rows of the table of numbers: chapters, and in each the claims of each kind."""
    from ntk_helpers.book.claims import KINDS

    yield ["chapter", *KINDS, "all"]
    total = Counter()
    for chapter in chapters:
        count = Counter(record["kind"] for record in _records(app, chapter))
        total += count
        uri = app.builder.get_relative_uri(docname, chapter)
        link = nodes.reference("", app.env.titles[chapter].astext(), internal=True, refuri=uri)
        yield [[link], *(str(count[kind]) for kind in KINDS), str(count.total())]
    yield ["the book", *(str(total[kind]) for kind in KINDS), str(total.total())]


def _claims(app, docname, chapter):
    """The rows of a chapter's table; each measured value leads to its claim."""
    from ntk_helpers.book.claims import measured_text

    yield ["claim", "kind", "expected", "measured"]
    page = app.builder.get_relative_uri(docname, chapter)
    for record in _records(app, chapter):
        statement = nodes.inline("", typeset(record["statement"]) + " ")
        source = nodes.emphasis("", typeset(f"({record['source']})"))
        measured = typeset(measured_text(record))
        link = nodes.reference("", measured, internal=True, refuri=f"{page}#claim-{quote(record['name'])}")
        yield [[statement, source], record["kind"], typeset(record["expected"]), [link]]


def _fill(app, doctree, docname):
    for place in list(doctree.findall(scoreboard)):
        if isinstance(place["of"], list):
            board = table(list(_counts(app, docname, place["of"])), (6, 1, 1, 1, 1, 1, 1))
            place.replace_self(nodes.container("", board, classes=["counts"]))
            continue
        rows = list(_claims(app, docname, place["of"]))
        uri = app.builder.get_relative_uri(docname, place["of"])
        number = f"{len(rows) - 1} claim{'s' * (len(rows) != 2)} of "
        link = nodes.reference("", "this chapter", internal=True, refuri=uri)
        board = [table(rows, (6, 1, 2, 2))] if len(rows) > 1 else []
        place.replace_self([nodes.paragraph("", number, link), nodes.container("", *board, classes=["scoreboard"])])


def setup(app):
    app.add_directive("scoreboard", Scoreboard)
    app.connect("doctree-resolved", _fill)
    return {"parallel_read_safe": True}
