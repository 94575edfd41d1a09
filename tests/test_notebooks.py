import re
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import pytest
from chapters import ROOT, Chapter, chapters
from IPython.core.inputtransformer2 import TransformerManager
from make_notebooks import ConversionError, Converter, package_source
from pybtex.database import parse_string
from test_book import BIBLIOGRAPHY, HEADER

LIBRARY = BIBLIOGRAPHY + (
    "@article{three, author = {Ann A. and Bo B. and Cy C.}, title = {T}, journal = {J}, year = {2003}}\n"
    "@misc{undated, author = {{A Group}}, title = {U}}\n"
)


def convert(tmp_path, text, executed=None):
    """The Markdown cells of the notebook that a chapter becomes, joined."""
    path = tmp_path / "chapter.md"
    path.write_text(HEADER + "\n" + text, encoding="utf-8")
    chapter = Chapter(tmp_path, "chapter", 2)
    notebook = Converter(chapter, parse_string(LIBRARY, "bibtex"), executed).convert()
    nbformat.validate(notebook)
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def executed(name, text):
    metadata = {"scrapbook": {"name": name, "mime_prefix": "prefix/"}}
    output = nbformat.v4.new_output("display_data", data={"prefix/text/plain": text}, metadata=metadata)
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=[output])]), 12.3


@pytest.mark.parametrize(
    ("myst", "plain"),
    [
        ("As {cite:p}`three` says.", "As (A. et al., 2003) says."),
        ("As {cite:t}`someone` says.", "As One (2001) says."),
        ("{cite:p}`someone,undated`", "(One, 2001; A Group, n.d.)"),
        ("See {ref}`a\nsection <there>`.", "See a\nsection."),
        ("See {doc}`the other <../other>`.", "See the other."),
        ("It is {glue:text}`x:.2f`.", "It is `x`."),
        ("In {run-time}`a minute`.", "In a minute."),
        ("```{note}\nOne\n\ntwo.\n```", "> **Note.**\n>\n> One\n>\n> two."),
        (":::{admonition} A *title*\n:class: tip\nOne.\n:::", "> **A *title*.**\n>\n> One."),
        ("(here)=\n## There", "## There"),
        (
            "Code `{eq}` and ``a `{b}` c`` stay, $\\frac{1}{2}$ too.",
            "Code `{eq}` and ``a `{b}` c`` stay, $\\frac{1}{2}$ too.",
        ),
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
    assert "It is -0.12 in 12 s." in convert(tmp_path, text, executed("x", "-0.123"))
    assert "It is 3.00 in" in convert(tmp_path, text, executed("x", "3"))
    assert "It is 1e-06." in convert(tmp_path, "It is {glue:text}`x:.0e`.", executed("x", "1e-06"))
    assert "It is -inf." in convert(tmp_path, "It is {glue:text}`x`.", executed("x", "-inf"))
    assert "It is fine." in convert(tmp_path, "It is {glue:text}`x`.", executed("x", "'fine'"))


def test_references_are_listed_once(tmp_path):
    text = convert(tmp_path, "{cite:p}`three`, {cite:t}`someone`, {cite:t}`three`")
    listed = text.split("## References")[1]
    assert listed.count("\n- ") == 2
    assert "A Book" in listed


def test_exercises_and_figures(tmp_path):
    text = convert(
        tmp_path,
        "```{exercise} Why?\n:label: why\nSay $x$.\n```\n\n````{solution-start} why\n:class: dropdown\n````\n\n"
        "So.\n\n````{solution-end}\n````\n\nSee {numref}`fig` and {ref}`it <why>`.\n\n"
        "```{code-cell} ipython3\n---\nmystnb:\n  figure:\n    name: fig\n"
        "    caption: A curve, after {cite:t}`someone`.\n---\n1\n```\n",
    )
    assert "> **Exercise 2.1** (Why?).\n>\n> Say $x$." in text
    assert "**Solution to Exercise 2.1.**\n\nSo." in text
    assert "See Figure 2.1 and it." in text
    assert "*Figure 2.1.* A curve, after One (2001)." in text
    assert not re.search(r"solution-|dropdown|:label:", text)


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
        "Words\n\n````{note}\n```{tip}\ninside\n```\n````",
        "Words\n\n$$ a $$ (label)",
        "Words\n\n[](nowhere)",
        "Words\n\nsee [there](#nowhere)",
        "Words\n\nsee [there](../other/page.md)",
        "Words\n\n![alt](../_assets/logo.svg)",
        "Words\n\n[word]{.class}",
        "Words\n\n```{exercise} Why?\nNo label.\n```",
        "Words\n\n```{solution-start} nowhere\n```",
    ],
)
def test_what_it_cannot_convert_is_an_error_with_its_line(tmp_path, myst):
    line = HEADER.count("\n") + 4 + ("inside" in myst)
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
    """The first cell, as IPython runs it."""
    path = tmp_path / "chapter.md"
    path.write_text(HEADER + "\n# Title\n", encoding="utf-8")
    library = parse_string(LIBRARY, "bibtex")
    notebook = Converter(Chapter(tmp_path, "chapter", 2), library, None, "git+file:///x@1").convert()
    install = notebook.cells[0]
    assert install.cell_type == "code"
    if in_colab:
        monkeypatch.setitem(sys.modules, "google.colab", object())
    called = []
    shell = SimpleNamespace(run_line_magic=lambda name, line: called.append((name, line)))
    exec(TransformerManager().transform_cell(install.source), {"get_ipython": lambda: shell})
    assert called == expected


def test_package_comes_from_the_present_commit(tmp_path, monkeypatch):
    for variable in ("BOOK_REPOSITORY", "GITHUB_REPOSITORY"):
        monkeypatch.delenv(variable, raising=False)
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for command in (["init", "--quiet"], [*author, "commit", "--quiet", "--allow-empty", "--message", "First"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    assert package_source(tmp_path) is None
    monkeypatch.setenv("BOOK_REPOSITORY", "owner/name")
    assert re.fullmatch(r"git\+https://github\.com/owner/name@[0-9a-f]{40}", package_source(tmp_path))


def test_every_chapter_converts_to_the_same_notebook_twice():
    library = parse_string((ROOT / "book/references.bib").read_text(encoding="utf-8"), "bibtex")
    assert chapters()
    for chapter in chapters():
        first, second = (nbformat.writes(Converter(chapter, library, None).convert()) for _ in range(2))
        assert first == second
        assert '"id": "cell-000"' in first
