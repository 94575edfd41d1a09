"""Publish every chapter as a plain notebook that runs anywhere, beside the pages, and offer it by their buttons.

A notebook is written from what Sphinx has made of its page, with all references, numbers and values resolved: in plain
Markdown, without outputs. What has no plain form is a warning with chapter and line. Links lead to the site, a first
cell installs the package in Colab, and the Colab button stands, where the address of the repository is known.
"""

import re
from functools import partial
from itertools import count, groupby, repeat
from pathlib import Path
from textwrap import indent
from urllib.parse import urljoin, urlsplit

import jupytext
import nbformat
from docutils import nodes
from execution_cache import executed_page
from folding import label
from live import live
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pybtex.plugin import find_plugin
from repository import commit, find_repository
from sphinx import addnodes
from sphinx.errors import ConfigError
from sphinx.util import logging
from sphinx.util.nodes import get_node_line, traverse_parent
from sphinx_exercise.nodes import exercise_enumerable_node, exercise_node, solution_node
from sphinx_proof.nodes import proof_node

logger = logging.getLogger(__name__)

# Colab has all that the package needs, and its own builds of torch and numpy: they stay as they are.
INSTALL = """# In Colab, install the book's package. Elsewhere: the same command, once.
import sys

if "google.colab" in sys.modules:
    %pip install --quiet --no-deps {source}"""
COLAB = "https://colab.research.google.com/github"
FOLDED = {"jupyter": {"source_hidden": True}, "cellView": "form"}  # in Jupyter, and in Colab
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}

SPECIAL = re.compile(r"[\\`*$]|~~|<(?=[\w/!?])|&(?=#?\w+;)|(?<!\w)_|_(?!\w)|\[(?=[^\]]*\]\()")  # in a line of Markdown
START = re.compile(r"^(\d+(?=[.)]\s)|(?=[-+#>=|]))", re.M)  # special at the start of a line
COMMENT, BLANK = re.compile(r"(?<!\\)%.*"), re.compile(r"\n\s*\n")  # in TeX
quoted = partial(indent, prefix="> ", predicate=lambda line: True)
NO_LANGUAGE = re.compile("none|default")  # as Sphinx has it
ALIGNED = {"text-left": ":--", "text-center": ":-:", "text-right": "--:"}
# HTML of a title: what stands in a summary is not read as Markdown.
TITLE = MarkdownIt("commonmark").use(dollarmath_plugin)
TITLE.add_render_rule("math_inline", lambda self, tokens, index, *_: f"${tokens[index].content}$")


class Writer:
    """Writes the notebook of a page; a call gives the Markdown of a node, as FORMS says at the end."""

    def __init__(self, app, docname):
        self.app, self.docname, self.cited = app, docname, set()
        self.address = app.config.html_baseurl  # as _ext/repository.py finds it; empty where it is not known
        cells = enumerate(jupytext.read(app.env.doc2path(docname)).cells)
        self.code = {index: cell for index, cell in cells if cell.cell_type == "code"}  # what is not written yet

    def __call__(self, node):
        for kind in type(node).__mro__:  # its own, or a more general one
            if kind in FORMS:
                return FORMS[kind](self, node)
        return self.warn(node, type(node).__name__)

    def warn(self, node, what):
        line = next((part.line for part in node.findall() if part.line), None) or get_node_line(node)
        text, place = f"notebooks: no plain form of {what}: {node.astext()[:60]!r}", (self.docname, line)
        logger.warning("%s", text, location=place, type="notebooks")
        return ""

    def notebook(self, page):
        """The plain notebook; each heading begins a cell."""
        cells = [nbformat.v4.new_markdown_cell(self.header())]
        if source := package_source(self.app.srcdir, find_repository(self.app.srcdir)):
            cells.append(nbformat.v4.new_code_cell(INSTALL.format(source=source)))
        for piece in [*self.pieces(page), *self.code_until(max(self.code, default=0)), *self.references()]:
            if not isinstance(piece, str):
                cells.append(piece)
            elif piece.startswith("#") or cells[-1].cell_type == "code":
                cells.append(nbformat.v4.new_markdown_cell(piece))
            else:
                cells[-1].source += f"\n\n{piece}"
        for index, cell in enumerate(cells):
            cell.id = f"cell-{index:03d}"  # random ids would make every build differ
        return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})

    def header(self):
        """What this notebook is, and how long it takes."""
        number = ".".join(map(str, self.app.env.toc_secnumbers.get(self.docname, {}).get("", ())))
        chapter, executed = f"Chapter {number}" if number else "A chapter", executed_page(self.app, self.docname)
        took = f" It runs in about {executed.run_time}." if executed else ""
        read = f" {self.link('Read it on its page', '')}." if self.address else ""
        return f"*{chapter} of the executable book* {self.app.config.html_title}.{took} No GPU is needed.{read}"

    def references(self):
        """What is cited, as the bibliography has it."""
        known, backend = self.app.env.get_domain("cite").citations, find_plugin("pybtex.backends", "docutils")()
        cited = sorted((c for c in known if c.citation_id in self.cited), key=lambda c: c.key)
        entries = [f"- {one_line(self(backend.paragraph(c.formatted_entry)))}" for c in cited]
        yield from ["## References\n\n" + "\n".join(entries)] if entries else []

    def pieces(self, node, solved=False):
        """What stands in a part of the page, in order: Markdown, and cells of code."""
        for child in node.children:
            if isinstance(child, nodes.section):
                yield from self.pieces(child, solved)
            elif isinstance(child, solution_node):
                yield from self.solution(child)
            elif child.get("nb_element") == "cell_code":
                yield from self.code_until(child["cell_index"], child, solved)
                yield from (self.caption("figure", words.parent, words) for words in child.findall(nodes.caption))
            elif text := self(child):
                yield text

    def code_until(self, index, node=None, solved=False):
        """The cells of code up to an index, the last of them that of a node; the page does not have the others."""
        for at in [at for at in self.code if at <= index]:
            cell = self.code.pop(at)
            plain, tags = nbformat.v4.new_code_cell(cell.source), cell.metadata.get("tags", [])
            if "raises-exception" in tags:  # the one tag that notebooks heed
                plain.metadata["tags"] = ["raises-exception"]
            parts = node.children if node and at == index and not solved else []
            if not any(part.get("nb_element") == "cell_code_source" for part in parts):  # folded, or not on the page
                plain.metadata |= FOLDED
                plain.source = f"# @title {label(tags)}\n{cell.source}"
            yield plain

    def live(self, node):
        """On the page it moves; here stands its picture."""
        return f"*On {self.link('its page', '')} this figure can be touched.*" if self.address else ""

    def solution(self, node):
        """The pieces of a solution, its text folded as its code is."""
        parts = groupby(self.pieces(node[1], solved=True), lambda piece: isinstance(piece, str))
        for part, (is_text, pieces) in enumerate(parts):
            title = f"**{node['title']}{', continued' if part else ''}**"
            if is_text:
                yield details(title, "\n\n".join(pieces))
            else:
                yield from [] if part else [details(title, "Its code is in the folded cells that follow.")]
                yield from pieces

    def line(self, node):
        return "".join(map(self, node.children))

    def blocks(self, node):
        return "\n\n".join(filter(None, map(self, node.children)))

    def items(self, node, marks):
        pairs = zip(marks, map(self.blocks, node.children), strict=False)
        items = [f"{mark} {indent(text, ' ' * (len(mark) + 1)).lstrip()}" for mark, text in pairs]
        return ("\n\n" if any("\n\n" in item for item in items) else "\n").join(items)

    def equation(self, node):
        """An equation, aligned as on the page; on one line, as no mark of a quote or list may be in it."""
        tex, number = COMMENT.sub("", node.astext()).strip(), self.number("displaymath", node)
        if not node["nowrap"]:
            tex = BLANK.sub(r" \\\\ ", tex)
            tex = rf"\begin{{split}} {tex} \end{{split}}" if r"\\" in tex else tex
        tag = rf" \tag{{{number}}}" if number else ""
        return f"$$ {one_line(tex)}{tag} $$"

    def table(self, node):
        head, *body = list(node.findall(nodes.row))
        rule = [next((ALIGNED[c] for c in entry["classes"] if c in ALIGNED), "---") for entry in head]
        rows = [map(self.cell, head), rule, *(map(self.cell, row) for row in body)]
        title = [self.caption("table", node, title) for title in node.findall(nodes.title)]
        return "\n\n".join([*title, "\n".join(f"| {' | '.join(row)} |" for row in rows)])

    def cell(self, entry):
        text = self.blocks(entry)
        return text if not {"|", "\n"} & set(text) else self.warn(entry, "a table with bars or lines in a cell")

    def box(self, node):
        """A box, or a theorem or the like."""
        titled = isinstance(node[0], nodes.title)
        title = self.line(node[0]) if titled else type(node).__name__.capitalize()
        if "realtype" in node:
            kind = f"{node['realtype'].capitalize()} {self.number(node['countertype'], node)}"
            title = f"**{kind.strip()}**{title}."
        else:
            title = f"**{title}{'' if title[-1] in '.:?!' else '.'}**"
        body = "\n\n".join(map(self, node.children[titled:]))
        return details(title, body) if "dropdown" in node["classes"] else quoted(f"{title}\n\n{body}")

    def proof(self, node):
        """A proof, which the page begins with its name and ends with a square."""
        text = self.blocks(node[0]).removeprefix("Proof. ")
        text += (" " if isinstance(node[0][-1], nodes.paragraph) else "\n\n") + r"$\square$"
        return details("**Proof**", text) if "dropdown" in node[0]["classes"] else f"**Proof.** {text}"

    def exercise(self, node):
        title, unfolded = f"**{self.label('exercise', node)}{self.line(node[0])}**", "dropdown" not in node["classes"]
        return details(title, self.blocks(node[1]), unfolded)

    def caption(self, kind, node, words):
        label = self.label(kind, node)
        return f"*{label}.* {self.line(words)}" if label else self.line(words)

    def label(self, kind, node):
        """Such as "Figure 2.1"; empty where the page has no number."""
        number = self.number(kind, node)
        return self.app.config.numfig_format[kind] % number if number else ""

    def number(self, kind, node):
        numbers = self.app.env.toc_fignumbers.get(self.docname, {}).get(kind, {})
        return ".".join(str(n) for name in node["ids"] for n in numbers.get(name, ()))

    def inline(self, node):
        if "bibtex-citation" in node["classes"]:
            self.cited |= {urlsplit(reference["refuri"]).fragment for reference in node.findall(nodes.reference)}
        return self.line(node)

    def link(self, text, uri):
        """A link, from this page; the text alone where it leads to the site and that is nowhere."""
        if not urlsplit(uri).scheme:
            uri = self.address and urljoin(self.address + self.app.builder.get_target_uri(self.docname), uri)
        return f"[{text}]({uri})" if uri else text


def one_line(text):
    return " ".join(text.split())


def ticked(code, language=None):
    """Code between as many ticks as hold it: a block, in a language, or without one a piece of a line."""
    runs = [len(run) for run in re.findall("`+", code)]
    ticks = "`" * (max(runs, default=0) + 1 if language is None else max([*runs, 2]) + 1)
    pad = "\n" if language is not None else " " if runs else ""
    return f"{ticks}{language or ''}{pad}{code}{pad}{ticks}"


def details(title, text, unfolded=False):
    """A text to be unfolded by a click on its title."""
    start = f"<details{' open' if unfolded else ''}>\n<summary>{TITLE.renderInline(title)}</summary>"
    return f"{start}\n\n{text}\n\n</details>"


# The Markdown of a node, by its class or a more general one.
FORMS = {
    nodes.title: lambda write, node: f"{'#' * len([*traverse_parent(node, nodes.section)])} {write.line(node)}",
    nodes.paragraph: lambda write, node: START.sub(r"\1\\", write.line(node)),
    nodes.bullet_list: lambda write, node: write.items(node, repeat(node.get("bullet", "-"))),
    nodes.enumerated_list: lambda write, node: write.items(node, (f"{n}." for n in count(node.get("start", 1)))),
    nodes.block_quote: lambda write, node: quoted(write.blocks(node)),
    nodes.literal_block: lambda write, node: ticked(node.astext().strip("\n"), NO_LANGUAGE.sub("", node["language"])),
    nodes.transition: lambda write, node: "---",
    nodes.math_block: Writer.equation,
    nodes.table: Writer.table,
    nodes.Admonition: Writer.box,
    live: Writer.live,
    proof_node: Writer.proof,
    **dict.fromkeys([exercise_node, exercise_enumerable_node], Writer.exercise),
    **dict.fromkeys([nodes.section, nodes.compound], Writer.blocks),
    **dict.fromkeys([nodes.comment, nodes.target, addnodes.toctree], lambda write, node: ""),  # they do not show
    nodes.Text: lambda write, node: SPECIAL.sub(r"\\\g<0>", node.astext()),
    nodes.inline: Writer.inline,
    nodes.emphasis: lambda write, node: f"*{write.line(node)}*",
    nodes.strong: lambda write, node: f"**{write.line(node)}**",
    nodes.literal: lambda write, node: ticked(node.astext()),
    nodes.math: lambda write, node: f"${one_line(node.astext())}$",
    nodes.reference: lambda write, node: write.link(write.line(node), node.get("refuri") or f"#{node['refid']}"),
}


def package_source(folder, repository):
    """What pip installs the package from: the published repository, at this commit; None where it is not known."""
    at = commit(folder)
    return repository and f"git+https://github.com/{repository}" + (f"@{at}" if at else "")


def notebook_path(docname):
    """Where the notebook of a chapter is, in the folder of all."""
    return Path(docname).relative_to("book").with_suffix(".ipynb").as_posix()


def _refuse_macros(app, config):
    if macros := (getattr(config, "mathjax3_config", None) or {}).get("tex", {}).get("macros"):
        raise ConfigError(f"mathjax3_config: expected no macros, which notebooks do not know, got {sorted(macros)}")


def _write(app, doctree, docname):
    if app.builder.name == "html" and "kernelspec" in app.env.metadata[docname]:
        path = Path(app.outdir, "notebooks", notebook_path(docname))
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(Writer(app, docname).notebook(doctree), path)


def _button(label, icon, text, tooltip, url):
    return {"type": "link", "label": label, "icon": f"fas fa-{icon}", "text": text, "tooltip": tooltip, "url": url}


def _add_buttons(app, pagename, templatename, context, doctree):
    buttons = context.get("header_buttons", [])
    downloads = next((group["buttons"] for group in buttons if group.get("label") == "download-buttons"), None)
    if downloads is None or "kernelspec" not in app.env.metadata[pagename]:
        return
    url, tip = context["pathto"](f"notebooks/{notebook_path(pagename)}", 1), "Download this chapter as a notebook"
    downloads.insert(0, _button("download-notebook-button", "code", ".ipynb", tip, url))
    if repository := find_repository(app.srcdir):
        url = f"{COLAB}/{repository}/blob/gh-pages/notebooks/{notebook_path(pagename)}"  # where the site is published
        buttons.insert(0, _button("colab-button", "rocket", "Colab", "Run this chapter in Colab", url))


def setup(app):
    app.connect("config-inited", _refuse_macros)
    app.connect("doctree-resolved", _write, priority=900)  # after all that change a page
    app.connect("html-page-context", _add_buttons, priority=600)  # the theme's own come at 501
    return {"parallel_read_safe": True}
