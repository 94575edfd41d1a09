"""The directive ``{about-build}``: what this build was made of, in short (versions) or in full (all), and how well
tested the package is (mutants)."""

import json
import platform
import re
from importlib.metadata import requires, version
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst.directives import choice
from repository import commit
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"^([\w.-]+)==", re.M)
NAME = re.compile(r"^[\w.-]+")


class AboutBuild(SphinxDirective):
    required_arguments = 1

    def run(self):
        rows = list(TABLES[choice(self.arguments[0], list(TABLES))](self.env.srcdir))
        return [table(rows, [1] * len(rows[0]))]


def _versions(folder):
    yield ["what", "version"]
    if at := commit(folder):
        yield ["this book (commit)", at]
    yield ["Python", platform.python_version()]
    direct = {NAME.match(requirement)[0] for requirement in requires("ntk-helpers")}
    yield from ([name, version(name)] for name in sorted(direct))


def _all(folder):
    yield ["what", "version"]
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    yield from ([name, version(name)] for name in PIN.findall(pins))


def _mutants(folder):
    """What `make mutants` found last."""
    modules = json.loads((ROOT / "tests/data/mutants.json").read_text(encoding="utf-8"))["modules"]
    yield ["module", "changed places", "noticed by a test"]
    yield from ([name, str(row["mutants"]), str(row["killed"])] for name, row in modules.items())
    mutants, killed = (sum(row[key] for row in modules.values()) for key in ("mutants", "killed"))
    yield ["all", str(mutants), f"{killed} ({killed / mutants:.0%})"]


TABLES = {"versions": _versions, "all": _all, "mutants": _mutants}


def table(rows, widths):
    """A table of rows, the first of them its head; a cell is a text, or a list of nodes."""
    head, *body = (nodes.row("", *map(_entry, row)) for row in rows)
    group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in widths), cols=len(widths))
    group += [nodes.thead("", head), nodes.tbody("", *body)]
    return nodes.table("", group)


def _entry(content):
    return nodes.entry("", nodes.paragraph("", "", *([nodes.Text(content)] if isinstance(content, str) else content)))


def setup(app):
    app.add_directive("about-build", AboutBuild)
    return {"parallel_read_safe": True}
