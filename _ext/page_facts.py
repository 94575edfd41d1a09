"""What a page says of itself: how long its chapter took, when it was changed last, and how to cite it.

The run time stands at the foot, and in the text by the role ``{run-time}``, whose own text stands there until the
chapter has been executed.
"""

from docutils import nodes
from execution_cache import executed_notebook, executed_page
from repository import commit
from sphinx.util.docutils import SphinxRole

BIBTEX = """@incollection{{{key},
  author    = {{{{{author}}}}},
  title     = {{{title}}},
  booktitle = {{{book}}},
  year      = {{{year}}},
{extra}}}"""


def citation(app, pagename, title):
    """The BibTeX entry of a page: with its address, and the commit that it was built from, where they are known."""
    address = app.config.html_baseurl  # as _ext/repository.py finds it; empty where it is not known
    extra = {"url": address and f"{address}{pagename}.html", "note": (at := commit(app.srcdir)) and f"commit {at[:10]}"}
    return BIBTEX.format(
        key=f"kernelregimes-{pagename.rsplit('/', 1)[-1].replace('_', '-')}",
        author=app.config.author,
        title=title,
        book=app.config.html_title,
        year=app.config.copyright[:4],
        extra="".join(f"  {name:<9} = {{{value}}},\n" for name, value in extra.items() if value),
    )


class RunTimeRole(SphinxRole):
    def run(self):
        executed = executed_notebook(self.env.srcdir, self.env.doc2path(self.env.docname))
        return [nodes.Text(executed.run_time if executed else self.text)], []


def _add_facts(app, pagename, templatename, context, doctree):
    if doctree is None:  # the search page, the index
        return
    context["citation"] = citation(app, pagename, app.env.titles[pagename].astext())
    context["executed"] = executed_page(app, pagename)


def setup(app):
    app.add_role("run-time", RunTimeRole())
    app.connect("html-page-context", _add_facts)
    return {"parallel_read_safe": True}
