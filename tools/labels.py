"""What the labels of the book stand for: numbers and titles, as the site gives them, and where they are."""

import posixpath
import re
from dataclasses import dataclass

import yaml
from chapters import is_notebook, pages
from docutils.nodes import make_id as anchor

FENCE = re.compile(
    r"^(?P<fence>`{3,}|:{3,})\{(?P<name>[\w:-]+)\}[ ]*(?P<title>[^\n]*)\n(?P<body>.*?)^(?P=fence)[ ]*$\n*", re.M | re.S
)
YAML_OPTIONS = re.compile(r"---\n(?P<yaml>.*?)^---\n", re.M | re.S)
OPTION = re.compile(r"^:(?P<key>[\w-]+):[ ]*(?P<value>[^\n]*)\n", re.M)
EQUATION = re.compile(r"^\$\$(?P<body>(?:(?!\$\$).)*)\$\$[ ]*\((?P<label>[^()$\n]+)\)[ ]*$", re.M | re.S)
TARGET = re.compile(r"^\((?P<label>[^()\n]+)\)=[ ]*\n(?:\s*#+ (?P<title>[^\n]+))?", re.M)
TITLE = re.compile(r"^# (.+)$", re.M)
THEOREMS = (
    *("theorem", "lemma", "proposition", "corollary", "conjecture", "axiom", "definition", "assumption", "property"),
    *("criterion", "observation", "remark", "example", "algorithm"),
)


@dataclass(frozen=True)
class Label:
    """What a reference to it says, and where it is: a page and a place on it."""

    text: str
    docname: str
    anchor: str = ""

    @property
    def path(self):
        """The address within the site."""
        return f"{self.docname}.html" + (f"#{self.anchor}" if self.anchor else "")


def options(body):
    """Split the body of a directive into its leading ``:key: value`` lines, or YAML between dashes, and the rest."""
    if block := YAML_OPTIONS.match(body):
        return yaml.safe_load(block["yaml"]) or {}, body[block.end() :]
    found = {}
    while match := OPTION.match(body):
        found[match["key"]], body = match["value"], body[match.end() :]
    return found, body


def numbered(page):
    """Pairs (kind, label) of what a page numbers, in its order; for each kind the site counts on its own."""
    cells = page.read().cells if is_notebook(page.path) else [{"source": page.path.read_text(encoding="utf-8")}]
    for cell in cells:
        if figure := cell.get("metadata", {}).get("mystnb", {}).get("figure"):
            yield "figure", figure.get("name")
        if cell.get("cell_type") == "code":
            continue
        yield from (("equation", m["label"]) for m in EQUATION.finditer(cell["source"]))
        yield from directives(cell["source"])


def directives(text):
    """Pairs (kind, label) of the numbered directives of a text, those inside of others too."""
    for match in FENCE.finditer(text):
        given, body = options(match["body"])
        kind = match["name"].removeprefix("prf:")
        if match["name"] in ("exercise", "table", *(f"prf:{name}" for name in THEOREMS)) and "nonumber" not in given:
            yield kind, given.get("label", given.get("name"))
        yield from directives(body)


def labels(book):
    """All labels of a book, each with what it stands for; pages under their own names, equations in parentheses."""
    found, counts = {}, {}
    for page in pages(book):
        text = page.path.read_text(encoding="utf-8")
        if title := TITLE.search(text):
            found[page.docname] = Label(title[1].strip(), page.docname)
        for match in TARGET.finditer(text):
            found[match["label"]] = Label((match["title"] or "").strip(), page.docname, anchor(match["label"]))
        prefix = f"{page.number}." if page.number else ""
        for kind, label in numbered(page):
            counts[prefix, kind] = counts.get((prefix, kind), 0) + 1  # pages without a number count on together
            number = f"{prefix}{counts[prefix, kind]}"
            if kind == "equation":
                found[f"({label})"] = Label(f"({number})", page.docname, anchor(f"equation-{label}"))
            elif label:
                place = anchor(label) if kind in ("figure", "table") else label  # exercises and theorems keep theirs
                found[label] = Label(f"{kind.capitalize()} {number}", page.docname, place)
    return found


def resolve(docname, target):
    """The page that a path in a page means: from that page's folder, or from the top where it begins with a slash."""
    return posixpath.normpath(posixpath.join("/", posixpath.dirname(docname), target)).lstrip("/").removesuffix(".md")
