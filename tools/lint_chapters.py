"""Check the chapters: code by ruff, folding of cells, claims, pages that go deeper, redirects, the rules of core pages.

Messages give the file and its own line. With --fix, cells are formatted and the tags that fold them are set in place.
"""

import ast
import json
import posixpath
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import yaml
from chapters import ROOT, chapters, pages
from core_pages import complaints as rules_of_core_pages

from ntk_helpers.book.claims import KINDS, MOST_WORDS

LINE_LENGTH = "76"  # what the page shows without scrolling
# A page is no module: imports come where they are needed, a last expression is shown unless a semicolon follows; and
# zip(axes, names, strict=True) would be plumbing.
IGNORED = "B018,B905,E402,E703,I001"
MOST_IMPORTS = 8  # lines, in a chapter's first cell
CELL = re.compile(
    r"^(?P<fence>`{3,})\{code-cell\}[^\n]*\n(?P<header>---\n.*?^---\n|(?::[^\n]*\n)*)\n?(?P<code>.*?)^(?P=fence)$",
    re.S | re.M,
)
FOLDS = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
PURPOSES = {"check", "checks", "drawing", "numbers"}  # what a cell is folded for


@dataclass(frozen=True)
class Cell:
    """A code cell of a chapter: where it is, its options, and its code."""

    match: re.Match

    @property
    def line(self):
        return self.match.string.count("\n", 0, self.match.start()) + 1

    @property
    def code_line(self):
        return self.match.string.count("\n", 0, self.match.start("code")) + 1

    @cached_property
    def options(self):
        text = re.sub(r"^---$", "", self.match["header"], flags=re.M)
        return yaml.safe_load(re.sub(r"^:([\w-]+):", r"\1:", text, flags=re.M)) or {}

    @property
    def tags(self):
        return set(self.options.get("tags", []))

    @property
    def folded(self):
        return bool(self.tags & FOLDS)

    @cached_property
    def tree(self):
        try:
            return ast.parse(re.sub(r"^[%!].*$", "pass", self.match["code"], flags=re.M))
        except SyntaxError:  # ruff says where
            return ast.parse("")

    def calls(self, name):
        """The calls of a function by its name, or of anything in a module by the module's."""
        called = [node for node in ast.walk(self.tree) if isinstance(node, ast.Call)]
        return [c for c in called if name in (getattr(c.func, "id", None), getattr(_module(c.func), "id", None))]

    def loads(self):
        """The names that the cell uses."""
        return {n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _module(function):
    return function.value if isinstance(function, ast.Attribute) else None


def cells_of(text):
    """The code cells of a chapter, in order."""
    return [Cell(match) for match in CELL.finditer(text)]


def tags_for(cell, later):
    """The tags that fold a cell by what it is for, where that must be folded; `later` are the names used after it."""
    if claims := cell.calls("claim"):
        gathered = {"hide-cell", "checks"} <= cell.tags and all(_given(claim, "kind") == "identity" for claim in claims)
        return ["hide-cell", "checks"] if gathered else ["hide-input", "check"]
    if "figure" in cell.options.get("mystnb", {}) or cell.calls("plt") or cell.calls("animate"):
        return ["hide-input", "drawing"]
    if cell.calls("glue") and all(_only_glues(statement, later) for statement in cell.tree.body):
        return ["hide-input", "numbers"]
    return []


def _given(call, name):
    """The constant that is written for an argument of a call; None where there is none."""
    return next((getattr(k.value, "value", None) for k in call.keywords if k.arg == name), None)


def _only_glues(statement, later):
    """Whether nothing stays of a statement but numbers for the prose."""
    match statement:
        case ast.Expr(value=ast.Call(func=ast.Name(id="glue"))):
            return True
        case ast.For(body=body) | ast.With(body=body) | ast.If(body=body, orelse=[]):
            return all(_only_glues(inner, later) for inner in body)
        case ast.Assign(targets=targets):
            stored = {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
            return not stored & later
    return False


def wrong_tags(cells):
    """Pairs of a cell and the tags that it should have, for each cell that is not folded as what it is for."""
    later = set()
    for cell in reversed(cells):
        wanted = tags_for(cell, later)
        later |= cell.loads()
        others = cell.tags & PURPOSES - set(wanted)
        if not set(wanted) <= cell.tags or others or (wanted and cell.tags & FOLDS - set(wanted)):
            yield cell, wanted


def tagged(cell, wanted):
    """The header of a cell with other tags for what it is for."""
    kept = [tag for tag in cell.options.get("tags", []) if tag not in FOLDS | PURPOSES]
    line = f"tags: [{', '.join([*wanted, *kept])}]\n"
    rest = re.sub(r"^:?tags:.*\n", "", cell.match["header"], flags=re.M)
    return rest.replace("---\n", "---\n" + line, 1) if rest.startswith("---") else f":{line}{rest}\n"


def claims_of(cell):
    """What is wrong with the claims of a cell: pairs of a line and a complaint."""
    for claim in cell.calls("claim"):
        line = cell.code_line + claim.lineno - 1
        kind, source = (_given(claim, name) for name in ("kind", "source"))
        if all(keyword.arg != "kind" for keyword in claim.keywords) or (isinstance(kind, str) and kind not in KINDS):
            yield line, f"the claim has no kind: expected kind= one of {', '.join(KINDS)}"
        if isinstance(source, str) and len(source.split()) > MOST_WORDS:
            yield line, f"the source of the claim has {len(source.split())} words: expected at most {MOST_WORDS}"


def imports_of(cells):
    """What is wrong with the first cell of a chapter."""
    for cell in cells[:1]:
        lines = [n.end_lineno - n.lineno + 1 for n in cell.tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        if sum(lines) > MOST_IMPORTS:
            yield cell.line, f"the first cell has {sum(lines)} lines of imports: expected at most {MOST_IMPORTS}"


def ruff(texts):
    """For each text, its cells as ruff formats them, and its complaints: pairs of a line and a text."""
    program = Path(sys.executable).with_name("ruff")
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.ipynb" for index in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            sources = [cell.match["code"].removesuffix("\n") for cell in cells_of(text)]
            nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources]), path)
        options = ["--config", str(ROOT / "pyproject.toml"), "--line-length", LINE_LENGTH, folder]
        check = [program, "check", "--output-format", "json", "--extend-ignore", IGNORED, *options]
        found = json.loads(subprocess.run(check, capture_output=True, text=True, check=False).stdout)
        subprocess.run([program, "format", "--quiet", *options], check=False)  # what cannot be parsed, check names
        for path, text in zip(paths, texts, strict=True):
            formatted = [cell.source + "\n" for cell in nbformat.read(path, as_version=4).cells]
            cells, own = cells_of(text), [f for f in found if Path(f["filename"]).name == path.name]
            yield formatted, [(_line_of(f, cells), f"{f['code']} {f['message']}") for f in own]


def _line_of(finding, cells):
    return cells[(finding["cell"] or 1) - 1].code_line + finding["location"]["row"] - 1


def lint(path, text, formatted, findings):
    """The complaints about one chapter: pairs of a line and a text."""
    cells = cells_of(text)
    yield from findings
    for cell, wanted in zip(cells, formatted, strict=True):
        if wanted != cell.match["code"]:
            yield cell.line, "the cell is not formatted; run make format"
        yield from claims_of(cell)
    for cell, wanted in wrong_tags(cells):
        yield cell.line, f"the cell is not folded as what it is for: expected tags {wanted}; run make format"
    yield from imports_of(cells)
    yield from rules_of_core_pages(path, text, cells)


def fixed(text, formatted):
    """A chapter with its cells formatted, and folded by what they are for."""
    cells = cells_of(text)
    wanted = {cell.line: tags for cell, tags in wrong_tags(cells)}
    for cell, code in reversed(list(zip(cells, formatted, strict=True))):
        start, end = cell.match.span("code")
        if cell.line in wanted:
            start, code = cell.match.start("header"), tagged(cell, wanted[cell.line]) + code
        text = text[:start] + code + text[end:]
    return text


def going_deeper(book=ROOT):
    """What is wrong with the pages that go deeper: each belongs to a chapter, and says what it adds."""
    known = {page.path: page for page in pages(book)}
    for path in sorted((book / "book" / "deeper").glob("*.md")):
        page, head = known.get(path), path.read_text(encoding="utf-8").split("---\n", 2)
        if page is None or page.parent is None:
            yield path, 1, "the page has no chapter: expected it in _toc.yml, in the sections of a chapter"
        if len(head) < 3 or not (yaml.safe_load(head[1]) or {}).get("deeper"):
            yield path, 1, "expected a line `deeper:` in the header, one sentence that says what the page adds"


def redirects(book=ROOT):
    """What is wrong with the redirects: each leads from a page that is gone to a page of the book."""
    path = book / "_config.yml"
    text, known = path.read_text(encoding="utf-8"), {page.docname for page in pages(book)}
    for old, new in yaml.safe_load(text)["sphinx"]["config"].get("redirects", {}).items():
        line = text.count("\n", 0, text.index(f"{old}:")) + 1
        target = posixpath.normpath(posixpath.join(posixpath.dirname(old), new)).removesuffix(".html")
        if target not in known:
            yield path, line, f"the redirect is dead: expected a page of the book, got {target}"
        if old in known:
            yield path, line, f"the redirect hides a page of the book: {old}"


def main(fix):
    paths = [chapter.path for chapter in chapters()]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    if fix:
        for path, text, (formatted, _) in zip(paths, texts, list(ruff(texts)), strict=True):
            path.write_text(fixed(text, formatted), encoding="utf-8")
        texts = [path.read_text(encoding="utf-8") for path in paths]
    found = [*going_deeper(), *redirects()]
    for path, text, (formatted, findings) in zip(paths, texts, list(ruff(texts)), strict=True):
        found += [(path, line, complaint) for line, complaint in lint(path, text, formatted, findings)]
    for path, line, complaint in found:
        print(f"{path.relative_to(ROOT)}:{line}: {complaint}")
    return not found


if __name__ == "__main__":
    if not main(fix="--fix" in sys.argv[1:]):
        raise SystemExit(1)
    print("chapters: all cells formatted, clean and folded")
