"""Turn every chapter into a plain notebook, ``notebooks/<part>/<chapter>.ipynb``, that runs anywhere.

MyST is written out in plain Markdown: boxes, exercises, numbered equations and figures, citations, references, glued
numbers. What this can't convert is an error that names the chapter and the line. Values that the chapter computes, its
glued numbers and its run time, stand in the text where the chapter has been executed in its present state (``make
book``); before that their names do. A first cell installs the package in Colab, where its repository is known.
"""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
from chapters import ROOT, chapters
from pybtex.database import parse_file
from pybtex.plugin import find_plugin
from repository import find_repository

ADMONITIONS = ("admonition", "note", "tip", "important", "warning", "seealso")

FENCE = re.compile(
    r"^(?P<fence>`{3,}|:{3,})\{(?P<name>[\w:-]+)\}[ ]*(?P<title>[^\n]*)\n(?P<body>.*?)^(?P=fence)[ ]*$\n?", re.M | re.S
)
OPTION = re.compile(r"^:(?P<key>[\w-]+):[ ]*(?P<value>[^\n]*)\n", re.M)
EQUATION = re.compile(r"^\$\$(?P<body>.*?)^\$\$[ ]*\((?P<label>[\w:-]+)\)[ ]*$", re.M | re.S)
TARGET = re.compile(r"^\([\w:-]+\)=[ ]*\n", re.M)
ROLE_OR_CODE = re.compile(r"(?:\{(?P<role>[\w:-]+)\})?(?P<ticks>`+)(?P<text>.+?)(?<!`)(?P=ticks)(?!`)", re.S)
EXPLICIT = re.compile(r"(?P<text>.*?)\s*<(?P<target>[^<>]+)>", re.S)
# MyST that would show raw in a plain notebook: directives (fences), and then, outside code and math, roles, targets,
# substitutions, block breaks, comments; labels of one-line math, links that lead nowhere there, attributes.
OPEN_FENCE = re.compile(r"^(?:> ?)*[`:~]{3,}\{.*", re.M)
MATH = re.compile(r"\$\$.*?\$\$|\$[^$\n]+?\$", re.S)
LEFTOVER = re.compile(
    r"\{[\w:-]+\}`.*|^\([\w:-]+\)=.*|\{\{.*?\}\}|^\+\+\+.*|^%.*"
    r"|\$\$[ ]*\([\w:-]+\)|\]\((?!https?://|mailto:).*?\)|[\])]\{[.#\w].*?\}",
    re.M,
)


# Colab has all that the package needs, and its own builds of torch and numpy: they stay as they are.
INSTALL = """# In Colab, install the book's package; elsewhere it is there already.
import sys

if "google.colab" in sys.modules:
    %pip install --quiet --no-deps {source}"""


class ConversionError(ValueError):
    """MyST that has no plain form here."""


class Converter:
    """Converts one chapter; knows its numbers, its citations, what it computed, and where the package comes from."""

    def __init__(self, chapter, bibliography, executed, source=None):
        self.chapter, self.bibliography, self.source, self.cited = chapter, bibliography, source, []
        self.notebook = chapter.read()
        self.values, self.seconds = computed_values(executed)
        self.numbers = self._numbers()

    def convert(self):
        """The plain notebook."""
        cells = [nbformat.v4.new_code_cell(INSTALL.format(source=self.source))] if self.source else []
        for cell, line in zip(self.notebook.cells, self._first_lines(), strict=True):
            if cell.cell_type == "markdown":
                cells.append(nbformat.v4.new_markdown_cell(self.markdown(cell.source, line)))
                continue
            cells.append(nbformat.v4.new_code_cell(cell.source))
            if figure := cell.metadata.get("mystnb", {}).get("figure"):
                if not {"name", "caption"} <= set(figure):
                    raise ConversionError(
                        f"{self.chapter.path}:{line}: the figure of this cell lacks a name or caption"
                    )
                number = self.numbers[figure["name"]]
                cells.append(nbformat.v4.new_markdown_cell(f"*{number}.* " + self.markdown(figure["caption"], line)))
        if self.cited:
            cells.append(nbformat.v4.new_markdown_cell(self._references()))
        cells = [cell for cell in cells if cell.source.strip()]
        for index, cell in enumerate(cells):
            cell.id = f"cell-{index:03d}"  # random ids would make every build differ
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})

    def markdown(self, source, line):
        """Plain Markdown for a piece of MyST that begins at a line of the chapter."""
        source = source.rstrip() + "\n"
        try:
            text = FENCE.sub(self._directive, source)
            text = EQUATION.sub(lambda m: f"$${m['body']}\\tag{{{self.numbers[m['label']][1:-1]}}}\n$$", text)
            text = ROLE_OR_CODE.sub(self._role, TARGET.sub("", text))
            require_plain(text)
        except ConversionError as error:
            found = error.args[0]
            offset = source[: max(0, source.find(found))].count("\n")
            raise ConversionError(f"{self.chapter.path}:{line + offset}: can't convert {found!r}") from None
        return text.strip()

    def _first_lines(self):
        """The line of the chapter on which each cell's text begins."""
        text, position = self.chapter.path.read_text(encoding="utf-8"), 0
        for cell in self.notebook.cells:
            position = text.index(cell.source, position)
            yield text.count("\n", 0, position) + 1
            position += len(cell.source)

    def _numbers(self):
        """The texts that references to labels become: "(1.2)", "Figure 1.1", "Exercise 1.3"."""
        prefix = f"{self.chapter.number}." if self.chapter.number else ""
        labels = {"equation": [], "Figure": [], "Exercise": []}
        for cell in self.notebook.cells:
            labels["equation"] += [m["label"] for m in EQUATION.finditer(cell.source)]
            if figure := cell.metadata.get("mystnb", {}).get("figure"):
                labels["Figure"].append(figure.get("name"))
            exercises = [m for m in FENCE.finditer(cell.source) if m["name"] == "exercise"]
            labels["Exercise"] += [options(m["body"])[0].get("label") for m in exercises]
        numbers = {label: f"({prefix}{i})" for i, label in enumerate(labels.pop("equation"), 1)}
        for kind, names in labels.items():
            numbers |= {label: f"{kind} {prefix}{i}" for i, label in enumerate(names, 1)}
        return numbers

    def _directive(self, match):
        given, body = options(match["body"])
        name, title = match["name"], match["title"].strip()
        if name in ADMONITIONS:
            return quoted(f"**{title if name == 'admonition' else name.capitalize()}.**", body)
        if name == "exercise" and given.get("label"):
            return quoted(f"**{self.numbers[given['label']]}** ({title}).", body)
        if name == "solution-start" and title in self.numbers:
            return f"**Solution to {self.numbers[title]}.**\n"
        if name == "solution-end":
            return ""
        raise ConversionError(match[0].splitlines()[0])

    def _role(self, match):
        role, text = match["role"], match["text"]
        if role is None:
            return match[0]
        if role in ("cite:p", "cite:t"):
            return self._citation(match[0], text.split(","), parenthetical=role == "cite:p")
        if role in ("eq", "numref") and text in self.numbers:
            return self.numbers[text]
        if role in ("ref", "doc") and (explicit := EXPLICIT.fullmatch(text)):
            return explicit["text"]
        if role == "glue:text":
            name, _, spec = text.partition(":")
            return f"{self.values[name]:{spec}}" if name in self.values else f"`{name}`"
        if role == "run-time":
            return f"{self.seconds:.0f} s" if self.seconds else text
        raise ConversionError(match[0])

    def _citation(self, role, keys, parenthetical):
        texts = []
        for key in map(str.strip, keys):
            if key not in self.bibliography.entries:
                raise ConversionError(role)
            self.cited += [key] * (key not in self.cited)
            names, year = author_year(self.bibliography.entries[key])
            texts.append(f"{names}, {year}" if parenthetical else f"{names} ({year})")
        return f"({'; '.join(texts)})" if parenthetical else ", ".join(texts)

    def _references(self):
        style, backend = find_plugin("pybtex.style.formatting", "unsrt")(), find_plugin("pybtex.backends", "markdown")()
        entries = style.format_entries([self.bibliography.entries[key] for key in sorted(self.cited)])
        return "## References\n\n" + "\n".join(f"- {entry.text.render(backend)}" for entry in entries)


def require_plain(text):
    """Raise ConversionError with the first piece of MyST that is left in a converted text."""
    without_code = ROLE_OR_CODE.sub(lambda m: m[0] if m["role"] else "", text)
    without_math = MATH.sub("$$", without_code)  # what is left of it shows a label that follows
    if leftover := OPEN_FENCE.search(text) or LEFTOVER.search(without_math):
        raise ConversionError(leftover[0].lstrip("> $"))


def options(body):
    """Split the body of a directive into its leading ``:key: value`` lines and the rest."""
    found = {}
    while match := OPTION.match(body):
        found[match["key"]], body = match["value"], body[match.end() :]
    return found, body


def quoted(title, body):
    """A block quote that begins with a title."""
    return "\n".join(f"> {line}".rstrip() for line in [title, "", *body.strip().splitlines()]) + "\n"


def author_year(entry):
    """The short names of an entry's authors, and its year."""
    names = [" ".join(person.last_names) for person in entry.persons["author"]]
    names = [name.strip("{}") for name in names]
    short = names[0] + (" et al." if len(names) > 2 else f" and {names[1]}" if len(names) == 2 else "")
    return short, entry.fields.get("year", "n.d.")


def computed_values(executed):
    """The values glued in an executed notebook, by name, and its run time in seconds; empty and None without one."""
    if executed is None:
        return {}, None
    notebook, seconds = executed
    values = {}
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if glued := output.get("metadata", {}).get("scrapbook"):
            values[glued["name"]] = literal(output["data"][glued["mime_prefix"] + "text/plain"])
    return values, seconds


def literal(text):
    """The str, int or float that a text represents, "inf" and "nan" included."""
    return float(text) if text.lstrip("-") in ("inf", "nan") else ast.literal_eval(text)


def package_source(book):
    """What pip installs the package from: the published repository at this commit; None where that is not known."""
    if not (repository := find_repository(book)):
        return None
    git = subprocess.run(["git", "-C", str(book), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return f"git+https://github.com/{repository}@{git.stdout.strip()}"


def make_notebooks(book=ROOT):
    """Write the plain notebook of every chapter; return their paths."""
    target, source = book / "notebooks", package_source(book)
    shutil.rmtree(target, ignore_errors=True)
    bibliography, written = parse_file(str(book / "book" / "references.bib")), []
    for chapter in chapters(book):
        notebook = Converter(chapter, bibliography, chapter.executed(), source).convert()
        path = target / Path(chapter.docname).relative_to("book").with_suffix(".ipynb")
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, path)
        written.append(path)
    return written


if __name__ == "__main__":
    try:
        for path in make_notebooks():
            print(path.relative_to(ROOT))
    except ConversionError as error:
        raise SystemExit(str(error)) from None
