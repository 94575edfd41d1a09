"""Turn every chapter into a plain notebook, ``notebooks/<part>/<chapter>.ipynb``, that runs anywhere.

MyST is written out in plain Markdown: boxes, theorems, exercises, numbered equations and figures, citations,
references, glued numbers, macros. What this can't convert is an error that names the chapter and the line. Values that
the chapter computes, its glued numbers and its run time, stand in the text where the chapter has been executed in its
present state; before that their names do. References lead to the site, and a first cell installs the package in Colab,
where the address of the repository is known.
"""

import ast
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml
from chapters import ROOT, chapters
from glued_numbers import typeset
from labels import EQUATION, FENCE, THEOREMS, Label, labels, options, resolve
from macros import expand
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pybtex.database import BibliographyData, parse_file
from pybtex.plugin import find_plugin
from pybtex.richtext import Text
from repository import commit, find_repository, site_address

ADMONITIONS = ("admonition", "note", "tip", "hint", "important", "attention", "caution", "warning", "seealso")
OPTIONS = {"label", "name", "class", "align", "widths", "nonumber"}  # of directives; any other is an error
SOLUTION = re.compile(
    r"^(?P<fence>`{3,}|:{3,})\{solution-(?P<end>start|end)\}[ ]*(?P<label>[^\n]*)\n.*?^(?P=fence)[ ]*\n", re.M | re.S
)
START = r"^[> \t]*(?:(?:[-*+]|\d+[.)])[ ]+)*"  # of a line, in quotes and lists too
SAME = r"(?:(?!\n[> \t]*\n).)+?"  # what stands in one paragraph
CODE_BLOCK = rf"{START}(?P<block>`{{3,}}|~{{3,}})(?![ ]*\{{)[^\n]*\n.*?^[> \t]*(?P=block)[ \t]*$"
CODE = rf"{CODE_BLOCK}|(?P<ticks>`+)(?P<text>{SAME})(?<!`)(?P=ticks)(?!`)"
ROLE_OR_CODE = re.compile(rf"(?:\{{(?P<role>[\w:-]+)\}}(?=`))?(?:{CODE})", re.M | re.S)
TARGET_LINE = re.compile(r"^\([^()\n]+\)=[ ]*\n", re.M)
NUMBERED = re.compile(r"[A-Z][a-z]+ (?P<number>[\d.]+)")
EXPLICIT = re.compile(r"(?P<text>.*?)\s*<(?P<target>[^<>]+)>", re.S)
MATH = re.compile(rf"(?<!\\)\$\$.+?\$\$|(?<![\\$])\$(?!\$){SAME}(?<!\\)\$", re.S)
MATH_OR_CODE = re.compile(rf"{CODE}|(?P<math>{MATH.pattern})", re.M | re.S)
DISPLAY = re.compile(r"\$\$(?P<body>.*?)(?P<end>(?:\\tag\{[^{}]*\}\s*)?\$\$)", re.S)
ENVIRONMENT = re.compile(r"\\begin\{(?P<name>\w+\*?)\}.*?\\end\{(?P=name)\}", re.S)
# MyST that would show raw in a plain notebook: directives (fences), and then, outside code and math, roles, targets,
# comments, footnotes; substitutions, block breaks; labels of one-line math, environments of amsmath; attributes; and
# links that lead nowhere there.
OPEN_FENCE = re.compile(rf"{START}(?:[`~]{{3,}}[ ]*\{{|:{{3,}}).*", re.M)
ELSEWHERE = r"(?!https?://|mailto:|data:)"
LEFTOVER = re.compile(
    rf"\{{[\w:-]+\}}`.*|{START}(?:\([^()\n]+\)=[ ]*$|%.*)|\[\^[^\]\n]+\]|\{{\{{.*?\}}\}}|^\+\+\+.*"
    rf"|\$\$[ ]*\([^()$\n]+\)|\\begin\{{.*|[\])]\{{[.#\w].*?\}}"
    rf"|\]\({ELSEWHERE}.*?\)|^\[[^\]\n]+\]:[ ]*<?{ELSEWHERE}.*|<(?:project|path|inv):.*?>|<#.*?>"
    rf"|<[^<>]*\b(?:src|href)=[\"']?(?![\"']){ELSEWHERE}[^<>]*>",
    re.M,
)

# Colab has all that the package needs, and its own builds of torch and numpy: they stay as they are.
INSTALL = """# In Colab, install the book's package. Elsewhere: the same command, once.
import sys

if "google.colab" in sys.modules:
    %pip install --quiet --no-deps {source}"""
HIDDEN = {"jupyter": {"source_hidden": True}, "cellView": "form"}  # the code folded away, in Jupyter and in Colab
FOLDED = {"hide-cell", "hide-input", "remove-cell", "remove-input"}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}

PARAGRAPH = "\n\n"
WORDS = re.compile(r"(?!\s|[-+>#|`~<:]|\*\s|\d+[.)])")  # a line of text, not of a list, a table, code, a quote, HTML
# HTML of a title: what stands in a summary is not read as Markdown.
TITLE = MarkdownIt("commonmark").use(dollarmath_plugin)
TITLE.add_render_rule("math_inline", lambda self, tokens, index, *_: f"${tokens[index].content}$")


class ConversionError(ValueError):
    """MyST that has no plain form here."""


@dataclass(frozen=True)
class Book:
    """What a chapter's notebook needs to know of the whole book, and where that is published (None: nowhere)."""

    title: str
    labels: dict[str, Label]
    bibliography: BibliographyData
    macros: dict
    address: str | None = None
    source: str | None = None  # what pip installs the package from

    @classmethod
    def read(cls, folder):
        config = yaml.safe_load((folder / "_config.yml").read_text(encoding="utf-8"))
        mathjax = config.get("sphinx", {}).get("config", {}).get("mathjax3_config", {})
        repository = find_repository(folder)
        return cls(
            title=config["title"],
            labels=labels(folder),
            bibliography=parse_file(str(folder / "book" / "references.bib")),
            macros=mathjax.get("tex", {}).get("macros", {}),
            address=site_address(repository),
            source=package_source(folder, repository),
        )

    def link(self, text, label):
        """A link to the published page of a label; the text alone where there is none."""
        return f"[{text}]({self.address}{label.path})" if self.address else text


class Converter:
    """Converts one chapter of a book; `executed` is the chapter with its outputs, None without."""

    def __init__(self, chapter, book, executed):
        self.chapter, self.book, self.executed, self.cited = chapter, book, executed, []
        self.values = computed_values(executed.notebook) if executed else {}
        self.solution = None  # title of the solution that is being converted

    def convert(self):
        """The plain notebook."""
        cells = [nbformat.v4.new_markdown_cell(self.header())]
        if self.book.source:
            cells.append(nbformat.v4.new_code_cell(INSTALL.format(source=self.book.source)))
        for cell, line in zip(self.chapter.read().cells, self.chapter.first_lines(), strict=True):
            if cell.cell_type == "markdown":
                cells.append(nbformat.v4.new_markdown_cell(self.markdown(cell.source, line)))
                continue
            cells.append(self.code(cell, line))
            if figure := cell.metadata.get("mystnb", {}).get("figure"):
                cells.append(nbformat.v4.new_markdown_cell(self.caption(figure, line)))
        if self.solution:
            raise ConversionError(f"{self.chapter.path}: {self.solution} does not end: expected a solution-end")
        if self.cited:
            cells.append(nbformat.v4.new_markdown_cell(self.references()))
        cells = [cell for cell in cells if cell.source.strip()]
        for index, cell in enumerate(cells):
            cell.id = f"cell-{index:03d}"  # random ids would make every build differ
        return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})

    def header(self):
        """What this notebook is, and how long it takes."""
        number = f"Chapter {self.chapter.number}" if self.chapter.number else "A chapter"
        title, page = self.book.title, self.book.labels[self.chapter.docname]
        took = f" It runs in about {self.executed.run_time}." if self.executed else ""
        read = f" {self.book.link('Read it on its page', page)}." if self.book.address else ""
        return f"*{number} of the executable book* {title}.{took} No GPU is needed.{read}"

    def code(self, cell, line):
        """A code cell, folded where it is on the page."""
        if cell.cell_type != "code":
            raise ConversionError(f"{self.chapter.path}:{line}: can't convert a {cell.cell_type} cell")
        tags = set(cell.metadata.get("tags", []))
        metadata = dict(HIDDEN) if self.solution or tags & FOLDED else {}
        if "raises-exception" in tags:  # the one that notebooks heed
            metadata["tags"] = ["raises-exception"]
        return nbformat.v4.new_code_cell(cell.source, metadata=metadata)

    def caption(self, figure, line):
        if not {"name", "caption"} <= set(figure):
            raise ConversionError(f"{self.chapter.path}:{line}: the figure of this cell lacks a name or caption")
        return self.markdown(f"*{self.book.labels[figure['name']].text}.* {figure['caption']}", line)

    def markdown(self, source, line):
        """Plain Markdown for a piece of MyST that begins at a line of the chapter."""
        source = source.rstrip() + "\n"
        try:
            return PARAGRAPH.join(filter(None, map(str.strip, self.parts(source))))
        except ConversionError as error:
            found = error.args[0]
            # What has been converted already isn't found as it is now: as much of it as there is.
            places = (source.find(found[:end]) for end in range(len(found), 0, -1))
            offset = source.count("\n", 0, next((place for place in places if place >= 0), 0))
            raise ConversionError(f"{self.chapter.path}:{line + offset}: can't convert {found!r}") from None

    def parts(self, source):
        """The plain forms of what stands before, in, and after the solutions in a text."""
        position = 0
        for mark in SOLUTION.finditer(source):
            yield self.plain(source[position : mark.start()])
            position = mark.end()
            self.solution = self.solved(mark) if mark["end"] == "start" else None
            if self.solution and not source[position:].strip():
                yield self.fold_solution("Its code is in the folded cells that follow.")
        yield self.plain(source[position:])

    def solved(self, mark):
        """The title of the solution that begins at a mark."""
        label = self.book.labels.get(mark["label"].strip())
        if label is None or not label.text.startswith("Exercise"):
            raise ConversionError(mark[0].splitlines()[0])
        return f"Solution to {label.text}"

    def fold_solution(self, text):
        title, self.solution = self.solution, self.solution.removesuffix(", continued") + ", continued"
        return folded(f"**{title}**", text)

    def plain(self, source):
        text = EQUATION.sub(self.equation, source)
        text = self.inline(FENCE.sub(self.directive, TARGET_LINE.sub("", text)))
        require_plain(text)
        return self.fold_solution(text) if self.solution and text.strip() else text

    def equation(self, match):
        number = self.book.labels[f"({match['label']})"].text[1:-1]
        return f"$${match['body']}\\tag{{{number}}}\n$$"

    def inline(self, text):
        """A text with its roles and its math in their plain forms."""
        return in_math(ROLE_OR_CODE.sub(self.role, text), self.math)

    def math(self, formula):
        """A formula without macros, and, as the site has it, aligned where it has several lines."""
        dollars = "$$" if formula.startswith("$$") else "$"
        try:
            plain = dollars + expand(formula.removeprefix(dollars).removesuffix(dollars), self.book.macros) + dollars
        except ValueError:
            raise ConversionError(formula) from None
        display = DISPLAY.fullmatch(plain)
        body = re.sub(r"\n\s*\n", r" \\\\\n", display["body"].strip()) if display else ""
        if "\\\\" not in ENVIRONMENT.sub("", body):
            return plain
        return f"$$\n\\begin{{split}}\n{body}\n\\end{{split}}\n{display['end']}"

    def directive(self, match):
        given, body = options(match["body"])
        name, title, dropdown = match["name"], match["title"].strip(), "dropdown" in str(given.get("class"))
        if name in ADMONITIONS[1:] or name == "prf:proof":  # they have no title: their text may begin beside the name
            title, body = "", f"{title}\n{body}".lstrip("\n")
        title, body = self.inline(title), self.inline(FENCE.sub(self.directive, body))
        kind, label = name.removeprefix("prf:"), self.book.labels.get(given.get("label", given.get("name")))
        in_parentheses, box = f" ({title})" if title else "", folded if dropdown else quoted
        if not set(given) <= OPTIONS:
            raise ConversionError(match[0].splitlines()[0])
        if name in ADMONITIONS:
            title = title or name.capitalize()
            return box(f"**{title}{'' if title[-1] in '.:?!' else '.'}**", body)
        if name == "exercise" and label:
            return folded(f"**{label.text}{in_parentheses}**", body, unfolded=not dropdown)
        if name == "prf:proof":
            return folded("**Proof**", ended(body)) if dropdown else begun("**Proof.**", ended(body))
        if name.startswith("prf:") and kind in THEOREMS and (label or "nonumber" in given):
            return box(f"**{label.text if label else kind.capitalize()}**{in_parentheses}.", body)
        if name == "table" and label:
            return f"*{label.text}.* {title}\n\n{body.strip()}\n\n"
        raise ConversionError(match[0].splitlines()[0])

    def role(self, match):
        role, text = match["role"], match["text"]
        if role is None:
            return match[0]
        if role in ("cite:p", "cite:t"):
            return self.citation(match[0], text.split(","), parenthetical=role == "cite:p")
        if role in ("eq", "numref", "ref", "prf:ref", "doc"):
            return self.reference(match)
        if role == "glue:text":
            name, _, spec = text.partition(":")
            if not self.executed:
                return f"`{name}`"
            try:
                return typeset(f"{literal(self.values[name]):{spec}}")
            except (KeyError, ValueError, SyntaxError):
                raise ConversionError(match[0]) from None
        if role == "run-time":
            return self.executed.run_time if self.executed else text
        raise ConversionError(match[0])

    def reference(self, match):
        explicit = EXPLICIT.fullmatch(match["text"])
        target = explicit["target"] if explicit else match["text"]
        if match["role"] == "doc":
            target = resolve(self.chapter.docname, target)
        label = self.book.labels.get(f"({target})" if match["role"] == "eq" else target)
        if label is None or not (explicit or label.text):
            raise ConversionError(match[0])
        text = explicit["text"] if explicit and match["role"] != "eq" else label.text
        if match["role"] == "numref":
            numbered = NUMBERED.fullmatch(label.text)
            if not numbered or "{name}" in text:
                raise ConversionError(match[0])
            text = text.replace("%s", numbered["number"]).replace("{number}", numbered["number"])
        return self.book.link(text, label)

    def citation(self, role, keys, parenthetical):
        texts = []
        for key in map(str.strip, keys):
            if key not in self.book.bibliography.entries:
                raise ConversionError(role)
            self.cited += [key] * (key not in self.cited)
            names, year = author_year(self.book.bibliography.entries[key])
            texts.append(f"{names}, {year}" if parenthetical else f"{names} ({year})")
        return f"({'; '.join(texts)})" if parenthetical else ", ".join(texts)

    def references(self):
        style, backend = find_plugin("pybtex.style.formatting", "unsrt")(), find_plugin("pybtex.backends", "markdown")()
        entries = style.format_entries([self.book.bibliography.entries[key] for key in sorted(self.cited)])
        return "## References\n\n" + "\n".join(f"- {entry.text.render(backend)}" for entry in entries)


def require_plain(text):
    """Raise ConversionError with the first piece of MyST that is left in a converted text."""
    # What is left of code keeps its place in the line, and of a displayed formula shows a label that follows.
    without_code = ROLE_OR_CODE.sub(lambda m: m[0] if m["role"] else "`", text)
    without_math = MATH.sub(lambda m: "$$" if m[0].startswith("$$") else "$", without_code)
    if leftover := OPEN_FENCE.search(text) or LEFTOVER.search(without_math):
        raise ConversionError(leftover[0].lstrip("> $"))


def in_math(text, change):
    """The text with each formula changed, and what is code left alone."""
    return MATH_OR_CODE.sub(lambda m: change(m[0]) if m["math"] else m[0], text)


def quoted(title, body):
    """A block quote that begins with a title. Its equations stand on one line, as no mark of a quote may be in them."""
    body = in_math(body.strip(), lambda math: " ".join(re.sub(r"(?<!\\)%.*", "", math).split()))
    return "\n".join(f"> {line}".rstrip() for line in [title, "", *body.splitlines()]) + PARAGRAPH


def folded(title, body, unfolded=False):
    """A text to be unfolded by a click on its title."""
    start = f"<details{' open' if unfolded else ''}>\n<summary>{TITLE.renderInline(title)}</summary>"
    return f"{start}\n\n{body.strip()}\n\n</details>{PARAGRAPH}"


def begun(title, body):
    """A text that begins with a title, beside its first words if it has any there."""
    return f"{title}{' ' if WORDS.match(body) else PARAGRAPH}{body}{PARAGRAPH}"


def ended(body):
    """A proof that ends with a square, beside its last words if it has any there."""
    body = body.strip()
    last = body[body.rfind("\n") + 1 :]
    return f"{body}{' ' if WORDS.match(last) else PARAGRAPH}$\\square$"


def author_year(entry):
    """The short names of an entry's authors, else of its editors, else its title, and its year."""
    persons = entry.persons.get("author") or entry.persons.get("editor") or []
    names = [" ".join(map(str, person.rich_prelast_names + person.rich_last_names)) for person in persons]
    names = names or [str(Text.from_latex(entry.fields.get("title", entry.key)))]
    short = names[0] + (" et al." if len(names) > 2 else f" and {names[1]}" if len(names) == 2 else "")
    return short, entry.fields.get("year", "n.d.")


def computed_values(notebook):
    """The values glued in an executed notebook, as text, by name."""
    values = {}
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if glued := output.get("metadata", {}).get("scrapbook"):
            values[glued["name"]] = output["data"][glued["mime_prefix"] + "text/plain"]
    return values


def literal(text):
    """The str, int or float that a text represents, "inf" and "nan" included."""
    return float(text) if text.lstrip("-") in ("inf", "nan") else ast.literal_eval(text)


def package_source(folder, repository):
    """What pip installs the package from: the published repository, at this commit; None where it is not known."""
    if not repository:
        return None
    at = commit(folder)
    return f"git+https://github.com/{repository}" + (f"@{at}" if at else "")


def notebook_path(docname):
    """Where the notebook of a chapter is, in the folder of all."""
    return Path(docname).relative_to("book").with_suffix(".ipynb").as_posix()


def make_notebooks(folder=ROOT, target=None):
    """Write the plain notebook of every chapter of a book to a folder, ``notebooks/``; return their paths."""
    target, book, written = target or folder / "notebooks", Book.read(folder), []
    shutil.rmtree(target, ignore_errors=True)
    for chapter in chapters(folder):
        path = target / notebook_path(chapter.docname)
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(Converter(chapter, book, chapter.executed()).convert(), path)
        written.append(path)
    return written


if __name__ == "__main__":
    try:
        for path in make_notebooks():
            print(path.relative_to(ROOT))
    except ConversionError as error:
        raise SystemExit(str(error)) from None
