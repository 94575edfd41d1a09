import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import nbformat
import pytest
from chapters import ROOT, chapters
from execution_cache import Executed
from IPython.core.inputtransformer2 import TransformerManager
from macros import expand
from make_notebooks import Book, ConversionError, Converter, package_source
from repository import site_address
from test_book import BIBLIOGRAPHY, CONFIG, HEADER, TOC

LIBRARY = BIBLIOGRAPHY + (
    "@article{three, author = {Ann A. and Bo B. and Cy C.}, title = {T}, journal = {J}, year = {2003}}\n"
    "@misc{undated, author = {{A Group}}, title = {U}}\n"
    '@book{accents, author = {van der Waerden, B. and M{\\"u}ller, C.}, title = {V}, publisher = {P}, year = {1931}}\n'
    "@book{edited, editor = {Ed Itor}, title = {W}, publisher = {P}, year = {1999}}\n"
    "@misc{nameless, title = {A {Web} page}, year = {1998}}\n"
)


OTHER = "# Another chapter\n\n(there)=\n## A section\n\n$$\na\n$$ (far)\n"


def read_book(tmp_path, text):
    """A book of two chapters, the first with this text, and its first chapter."""
    (tmp_path / "book").mkdir(exist_ok=True)
    files = {
        "_config.yml": CONFIG,
        "_toc.yml": TOC.replace("book/chapter", "book/other\n      - file: book/chapter"),
        "book/references.bib": LIBRARY,
        "book/intro.md": "# Intro\n",
        "book/other.md": OTHER,
        "book/chapter.md": HEADER + "\n" + text,
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    return Book.read(tmp_path), chapters(tmp_path)[0]


def convert(tmp_path, text, executed=None, **published):
    """The Markdown cells of the notebook that a chapter becomes, joined."""
    book, chapter = read_book(tmp_path, text)
    notebook = Converter(chapter, replace(book, **published), executed).convert()
    nbformat.validate(notebook)
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def executed(name, text):
    metadata = {"scrapbook": {"name": name, "mime_prefix": "prefix/"}}
    output = nbformat.v4.new_output("display_data", data={"prefix/text/plain": text}, metadata=metadata)
    return Executed(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=[output])]), 12.3)


@pytest.fixture(autouse=True)
def unpublished(monkeypatch):
    for variable in ("BOOK_REPOSITORY", "GITHUB_REPOSITORY", "BOOK_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("myst", "plain"),
    [
        ("As {cite:p}`three` says.", "As (A. et al., 2003) says."),
        ("As {cite:t}`someone` says.", "As One (2001) says."),
        ("{cite:p}`someone,undated`", "(One, 2001; A Group, n.d.)"),
        ("{cite:t}`accents`", "van der Waerden and Müller (1931)"),
        ("{cite:p}`edited,nameless`", "(Itor, 1999; A Web page, 1998)"),
        ("```{note}\nSee {cite:p}`three,\nsomeone`.\n```", "> See (A. et al., 2003; One, 2001)."),
        ("See {ref}`a\nsection <there>`.", "See a\nsection."),
        ("See {ref}`there` and {eq}`far`.", "See A section and (1.1)."),
        ("See {doc}`the other <other>` and {doc}`/book/other`.", "See the other and Another chapter."),
        ("It is {glue:text}`x:.2f`.", "It is `x`."),
        ("It is\n{glue:text}`x:.2f` % of all.", "It is\n`x` % of all."),
        ("In {run-time}`a minute`.", "In a minute."),
        ("```{note}\nOne\n\ntwo.\n```", "> **Note.**\n>\n> One\n>\n> two."),
        (":::{admonition} A *title*\n:class: tip\nOne.\n:::", "> **A *title*.**\n>\n> One."),
        ("````{note}\n```{tip}\nOne.\n```\n````", "> **Note.**\n>\n> > **Tip.**\n> >\n> > One."),
        ("```{note} One\ntwo.\n```\nThree.", "> **Note.**\n>\n> One\n> two.\n\nThree."),
        ("```{admonition} What?\nThis.\n```", "> **What?**\n>\n> This."),
        ("```{note}\n---\nname: x\n---\nOne.\n```", "> **Note.**\n>\n> One."),
        (
            "```{admonition} A *title*\n:class: tip, dropdown\nOne.\n```",
            "<details>\n<summary><strong>A <em>title</em>.</strong></summary>\n\nOne.\n\n</details>",
        ),
        (
            ":::{exercise} Is $\\norm{x} < 1$ & `f`, {ref}`so <there>`?\n:label: e\nSay.\n:::",
            "<strong>Exercise 2.1 (Is $\\lVert x \\rVert < 1$ &amp; <code>f</code>, so?)</strong>",
        ),
        ("(here)=\n## There", "## There"),
        ("(he.re)=\n## There\n\n{ref}`he.re`", "## There\n\nThere"),
        ("$$ x $$ (here)\n\n(here)=\n## There\n\n{eq}`here`, {ref}`here`", "## There\n\n(2.1), There"),
        ("$$ x $$ (e.x)\n\n{eq}`e.x`", "$$ x \\tag{2.1}\n$$\n\n(2.1)"),
        (
            "```{prf:theorem} Someone\n:label: law\nLet\n$$\nx\n$$ (x)\n```\n\nBy {prf:ref}`law` and {eq}`x`.",
            "> **Theorem 2.1** (Someone).\n>\n> Let\n> $$ x \\tag{2.1} $$\n\nBy Theorem 2.1 and (2.1).",
        ),
        ("```{prf:proof}\nClear.\n```", "**Proof.** Clear. $\\square$"),
        ("```{prf:proof} Clear\nby {ref}`there`.\n```", "**Proof.** Clear\nby A section. $\\square$"),
        ("```{prf:proof}\n- One.\n- Two.\n```", "**Proof.**\n\n- One.\n- Two.\n\n$\\square$"),
        ("```{prf:proof}\n:class: dropdown\nClear.\n```", "</summary>\n\nClear. $\\square$\n\n</details>"),
        ("```{prf:remark}\n:nonumber:\nIt is.\n```", "> **Remark**.\n>\n> It is."),
        ("```{table} Ones\n:name: ones\n| a |\n|---|\n| 1 |\n```", "*Table 2.1.* Ones\n\n| a |\n|---|\n| 1 |"),
        (
            "```{table} Ones\n:name: ones\n| a |\n|---|\n```\n\n{numref}`ones`, {numref}`tab. %s <ones>`",
            "Table 2.1, tab. 2.1",
        ),
        ("Over\n$\\R +\n\\R$, $\\R$ for \\$1.", "Over\n$\\mathbb{R} +\n\\mathbb{R}$, $\\mathbb{R}$ for \\$1."),
        ("```{note}\nOver $\\R +\n\\R$.\n```", "> Over $\\mathbb{R} + \\mathbb{R}$."),
        ("```{note}\n$$\nx % one\n+ 1\n$$\n```", "> $$ x + 1 $$"),
        ("$$\na &= b \\\\\n&= c\n$$ (x)", "$$\n\\begin{split}\na &= b \\\\\n&= c\n\\end{split}\n\\tag{2.1}\n$$"),
        ("$$\n\\begin{cases} a \\\\ b \\end{cases}\n$$", "$$\n\\begin{cases} a \\\\ b \\end{cases}\n$$"),
        ("$$\na\n\nb\n$$", "$$\n\\begin{split}\na \\\\\nb\n\\end{split}\n$$"),
        ("```python\n'{eq}`x`'\n\n% $\\R$\n```", "```python\n'{eq}`x`'\n\n% $\\R$\n```"),
        ("Over $\\R^2$ and `$\\R$`, $\\norm{x}$.", "Over $\\mathbb{R}^2$ and `$\\R$`, $\\lVert x \\rVert$."),
        (
            "Code `{eq}` and ``a `{b}` c`` stay, $\\frac{1}{2}$ too.",
            "Code `{eq}` and ``a `{b}` c`` stay, $\\frac{1}{2}$ too.",
        ),
        ("$$ a $$\n\n$$ b $$ (one)\n\n{eq}`one`", "$$ a $$\n\n$$ b \\tag{2.1}\n$$\n\n(2.1)"),
        (
            "$$\na\n$$ (one)\n\n$$\nb\n$$ (two)\n\n{eq}`two`, {eq}`one`",
            "$$\na\n\\tag{2.1}\n$$\n\n$$\nb\n\\tag{2.2}\n$$\n\n(2.2), (2.1)",
        ),
    ],
)
def test_conversions(tmp_path, myst, plain):
    assert plain in convert(tmp_path, myst)


def test_values_of_an_executed_chapter(tmp_path):
    text = "It is {glue:text}`x:.2f` in {run-time}`a minute`."
    assert "It is −0.12 in 12 s." in convert(tmp_path, text, executed("x", "-0.123"))
    assert "It is 3.00 in" in convert(tmp_path, text, executed("x", "3"))
    assert "It is 10⁻⁶." in convert(tmp_path, "It is {glue:text}`x:.0e`.", executed("x", "1e-06"))
    assert "It is -inf." in convert(tmp_path, "It is {glue:text}`x`.", executed("x", "-inf"))
    assert "It is fine." in convert(tmp_path, "It is {glue:text}`x`.", executed("x", "'fine'"))


def test_references_are_listed_once(tmp_path):
    text = convert(tmp_path, "{cite:p}`three`, {cite:t}`someone`, {cite:t}`three`")
    listed = text.split("## References")[1]
    assert listed.count("\n- ") == 2
    assert "A Book" in listed


EXERCISE = (
    "```{exercise} Why?\n:label: why\nSay $x$.\n```\n\n````{solution-start} why\n:class: dropdown\n````\n\n"
    "So.\n\n```{code-cell} ipython3\n1\n```\n\nThus.\n\n````{solution-end}\n````\n\nSee {ref}`it <why>`.\n\n"
    "```{code-cell} ipython3\n2\n```\n"
)


def test_exercises_and_their_solutions_are_folded(tmp_path):
    text = convert(tmp_path, EXERCISE)
    assert "<details open>\n<summary><strong>Exercise 2.1 (Why?)</strong></summary>\n\nSay $x$.\n\n</details>" in text
    assert "<details>\n<summary><strong>Solution to Exercise 2.1</strong></summary>\n\nSo.\n\n</details>" in text
    assert "<strong>Solution to Exercise 2.1, continued</strong></summary>\n\nThus.\n\n</details>\n\nSee it." in text
    assert not re.search(r"solution-|dropdown|:label:", text)


def test_the_code_of_a_solution_is_folded_and_no_other(tmp_path):
    book, chapter = read_book(tmp_path, EXERCISE)
    cells = [cell for cell in Converter(chapter, book, None).convert().cells if cell.cell_type == "code"]
    assert [cell.metadata.get("jupyter", {}).get("source_hidden", False) for cell in cells] == [True, False]
    assert [cell.metadata.get("cellView") for cell in cells] == ["form", None]


def test_a_solution_that_begins_with_code_is_announced(tmp_path):
    text = convert(tmp_path, EXERCISE.replace("So.\n\n", ""))
    assert "<strong>Solution to Exercise 2.1</strong></summary>\n\nIts code is in the folded cells that follow." in text


def test_a_solution_that_does_not_end_is_an_error(tmp_path):
    with pytest.raises(ConversionError, match=r"chapter\.md: Solution to Exercise 2\.1, continued does not end"):
        convert(tmp_path, EXERCISE.replace("````{solution-end}\n````", ""))


def test_figures(tmp_path):
    text = convert(
        tmp_path,
        "See {numref}`fig`.\n\n"
        "```{code-cell} ipython3\n---\nmystnb:\n  figure:\n    name: fig\n"
        "    caption: A curve, after {cite:t}`someone`.\n---\n1\n```\n",
    )
    assert "See Figure 2.1." in text
    assert "*Figure 2.1.* A curve, after One (2001)." in text


def test_a_figure_in_a_solution_is_folded_with_its_number(tmp_path):
    cell = "```{code-cell} ipython3\n---\nmystnb: {figure: {name: fig, caption: A curve.}}\n---\n1\n```\n"
    text = convert(tmp_path, EXERCISE.replace("Thus.", cell))
    assert "continued</strong></summary>\n\n*Figure 2.1.* A curve.\n\n</details>" in text


@pytest.mark.parametrize(
    ("tags", "metadata"),
    [
        ("hide-input", {"jupyter": {"source_hidden": True}, "cellView": "form"}),
        ("raises-exception", {"tags": ["raises-exception"]}),
        ("hide-output", {}),
    ],
)
def test_tags_of_cells(tmp_path, tags, metadata):
    book, chapter = read_book(tmp_path, f"```{{code-cell}} ipython3\n:tags: [{tags}]\n1\n```\n")
    (cell,) = (cell for cell in Converter(chapter, book, None).convert().cells if cell.cell_type == "code")
    assert cell.metadata == metadata


def test_references_lead_to_the_site(tmp_path):
    address = "https://owner.github.io/name/"
    text = convert(tmp_path, "See {ref}`there`, {eq}`far`, {doc}`it <other>`.", address=address)
    for name, place in {"A section": "#there", "(1.1)": "#equation-far", "it": ""}.items():
        assert f"[{name}]({address}book/other.html{place})" in text
    assert f"[Read it on its page]({address}book/chapter.html)" in text


def test_the_header_names_the_chapter_and_its_run_time(tmp_path):
    assert convert(tmp_path, "", executed("x", "1")).startswith(
        "*Chapter 2 of the executable book* Tiny. It runs in about 12 s. No GPU is needed."
    )


def test_a_value_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(ConversionError, match=r"can't convert '\{glue:text\}`y`'"):
        convert(tmp_path, "It is {glue:text}`y`.", executed("x", "1"))
    for value, spec in (("'fine'", ":.2f"), ("<Figure>", "")):
        with pytest.raises(ConversionError, match=r"chapter\.md:14: can't convert '\{glue:text\}`x"):
            convert(tmp_path, f"It is {{glue:text}}`x{spec}`.", executed("x", value))
    assert convert(tmp_path, "Words.", executed("x", "<Figure>"))


MACROS = {
    "R": r"\mathbb{R}",
    "norm": [r"\lVert #1 \rVert", 1],
    "pair": ["(#1, #2)", 2],
    "tangent": r"\Theta",
    "kernel": r"\tangent",
    "endless": r"\endless",
}


@pytest.mark.parametrize(
    ("tex", "expected"),
    [
        (r"\R\Rest", r"\mathbb{R}\Rest"),
        (r"\norm{\norm{a}_{\R}}", r"\lVert \lVert a \rVert_{\mathbb{R}} \rVert"),
        (r"\norm x, \norm\alpha", r"\lVert x \rVert, \lVert \alpha \rVert"),
        (r"\pair{a \} b}{c}", r"(a \} b, c)"),
        (r"\tangent x", r"\Theta x"),
        (r"\tangent{}x \kernel x", r"\Theta{}x \Theta x"),
        (r"\norm{\{}", r"\lVert \{ \rVert"),
    ],
)
def test_macros(tex, expected):
    assert expand(tex, MACROS) == expected


@pytest.mark.parametrize(
    ("tex", "message"), [(r"\endless", "contains itself"), (r"\norm", "an argument"), (r"\norm{x", "closing brace")]
)
def test_macros_that_do_not_end_are_errors(tex, message):
    with pytest.raises(ValueError, match=message):
        expand(tex, MACROS)


@pytest.mark.parametrize(
    "myst",
    [
        "Words\n\n```{nonsense}\n```",
        "Words\n\n{nonsense}`text`",
        "Words\n\n{eq}`nowhere`",
        "Words\n\n{cite:p}`nobody`",
        "Words\n\n{ref}`nowhere`",
        "Words\n\n:::{figure} picture.png\n:::",
        "Words\n\n```{note}\n{nonsense}`inside`\n```",
        "Words\n\n{{ substitution }}",
        "Words\n\n% a comment",
        "Words\n\n````{note}\n```{tip}\n{nonsense}`inside`\n```\n````",
        "Words\n\n{doc}`nowhere`",
        "Words\n\n{prf:ref}`nowhere`",
        "Words\n\n```{prf:theorem}\nNo label.\n```",
        "Words\n\n[](nowhere)",
        "Words\n\nsee [there](#nowhere)",
        "Words\n\nsee [there](../other/page.md)",
        "Words\n\n![alt](../_assets/logo.svg)",
        "Words\n\n[word]{.class}",
        "Words\n\n```{exercise} Why?\nNo label.\n```",
        "Words\n\n```{solution-start} nowhere\n```",
        "Words\n\n- ```{note}\n  In a list.\n  ```",
        "Words\n\n``` {note}\nA space.\n```",
        "Words\n\n```{raw-cell}\ninside\n```",
        "Words\n\n[^1]: A footnote.",
        "Words\n\n[there]: ../other/page.md",
        "Words\n\n<project:other.md>",
        'Words\n\n<img alt="x" src="../x.png">',
        "Words\n\n\\begin{align*}\nx\n\\end{align*}",
        "Words\n\n$\\norm$",
        "Words\n\n{numref}`there`",
        "Words\n\n```{exercise} Why?\n:label: x\n:nonumber:\nIt is.\n```",
        "Words\n\n```{exercise} Why?\n:label: x\n:hidden:\nIt is.\n```",
        "A ` alone\n\n{nonsense}`inside`",
        "Words\n\n```{note}\n{ref}`inside\nit <nowhere>`\n```",
    ],
)
def test_what_it_cannot_convert_is_an_error_with_its_line(tmp_path, myst):
    line = HEADER.count("\n") + 2 + myst[: max(7, myst.find("inside"))].count("\n")
    with pytest.raises(ConversionError, match=rf"chapter\.md:{line}: can't convert"):
        convert(tmp_path, myst)


def test_an_error_names_the_place_and_not_an_earlier_one(tmp_path):
    line = HEADER.count("\n") + 4
    with pytest.raises(ConversionError, match=rf"chapter\.md:{line}: can't convert '{{cite:p}}`nobody`'"):
        convert(tmp_path, "About nobody.\n\nAs {cite:p}`nobody` says.")
    cell = "```{code-cell} ipython3\n---\nmystnb:\n  figure:\n    caption: Words.\n---\n1\n```\n"
    with pytest.raises(
        ConversionError, match=rf"chapter\.md:{HEADER.count(chr(10)) + 8}: the figure of this cell lacks"
    ):
        convert(tmp_path, cell)


def test_math_is_left_alone(tmp_path):
    text = "So $\\frac{{a}}{b}$ and $[a](b)$.\n\n$$\n\\hat{{a}} \\% 1\n$$"
    assert convert(tmp_path, text).endswith(text)


@pytest.mark.parametrize(
    ("in_colab", "expected"), [(True, [("pip", "install --quiet --no-deps git+file:///x@1")]), (False, [])]
)
def test_package_is_installed_in_colab_alone(tmp_path, monkeypatch, in_colab, expected):
    """The first code cell, as IPython runs it."""
    book, chapter = read_book(tmp_path, "# Title\n")
    notebook = Converter(chapter, replace(book, source="git+file:///x@1"), None).convert()
    install = next(cell for cell in notebook.cells if cell.cell_type == "code")
    if in_colab:
        monkeypatch.setitem(sys.modules, "google.colab", object())
    called = []
    shell = SimpleNamespace(run_line_magic=lambda name, line: called.append((name, line)))
    exec(TransformerManager().transform_cell(install.source), {"get_ipython": lambda: shell})
    assert called == expected


def test_package_comes_from_the_present_commit(tmp_path):
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for command in (["init", "--quiet"], [*author, "commit", "--quiet", "--allow-empty", "--message", "First"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    assert package_source(tmp_path, None) is None
    assert re.fullmatch(r"git\+https://github\.com/owner/name@[0-9a-f]{40}", package_source(tmp_path, "owner/name"))


@pytest.mark.parametrize(
    ("repository", "environment", "address"),
    [
        (None, {}, None),
        ("Owner/name", {}, "https://owner.github.io/name/"),
        ("Owner/owner.github.io", {}, "https://owner.github.io/"),
        ("owner/name", {"BOOK_ADDRESS": "https://book.example.org"}, "https://book.example.org/"),
    ],
)
def test_the_address_of_the_site(repository, environment, address):
    assert site_address(repository, environment) == address


def test_every_chapter_converts_to_the_same_notebook_twice():
    assert chapters()
    for chapter in chapters():
        first, second = (nbformat.writes(Converter(chapter, Book.read(ROOT), None).convert()) for _ in range(2))
        assert first == second
        assert '"id": "cell-000"' in first
