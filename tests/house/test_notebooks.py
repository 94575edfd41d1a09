"""One tiny book of many pages, built once, and the notebooks that come of them."""

import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jupytext
import nbformat
import pytest
import yaml
from conftest import ROOT
from filelock import FileLock
from IPython.core.inputtransformer2 import TransformerManager
from plain_notebooks import INSTALL, _refuse_macros, package_source
from repository import site_address
from sphinx.errors import ConfigError
from test_book import BIBLIOGRAPHY, HEADER, INTRO

LIBRARY = BIBLIOGRAPHY + (
    "@article{three, author = {Ann A. and Bo B. and Cy C.}, title = {T}, journal = {J}, year = {2003}}\n"
    "@misc{undated, author = {{A Group}}, title = {U}}\n"
    '@book{accents, author = {van der Waerden, B. and M{\\"u}ller, C.}, title = {V}, publisher = {P}, year = {1931}}\n'
)
OTHER = HEADER + "\n(there)=\n## A section\n\n$$\na\n$$ (far)\n"
EXERCISE = ":::{exercise} Is $x < 1$ & `f`?\n:label: why-%s\nSay $x$.\n:::\n\n"
SOLUTION = "````{solution-start} why-%s\n:class: dropdown\n````\n\n%s\n\n````{solution-end}\n````\n\n"
CELL = "```{code-cell} ipython3\n%s\n```\n\n"
FIGURE = (
    "```{code-cell} ipython3\n---\ntags: [hide-input, drawing]\nmystnb:\n  image: {alt: A line.}\n  figure:\n"
    "    name: %s\n    caption: A curve, after {cite:t}`someone`.\n---\nimport matplotlib.pyplot as plt\n\n"
    "plt.plot([0, 1]);\n```\n\n"
)
GLUE = """from ntk_helpers.book.claims import glue

for name, value in {"x": -0.123, "tiny": 1e-6, "word": "fine", "one": 1.0}.items():
    glue(name, value)"""
LABELS = {  # the tags of a cell, and what stands in place of its code
    "hide-input": "Show code",
    "hide-cell, check": "Show the check",
    "hide-input, checks": "Checks",
    "remove-cell": "Show code",
    "raises-exception": None,
    "hide-input, drawing": "Show how this is drawn",
    "remove-input": "Show code",
    "hide-output": None,
    "remove-output": None,
    "remove-cell, drawing": "Show how this is drawn",
}
PAGES = {
    "executed": (
        "It is {glue:text}`x:.2f`, {glue:text}`tiny:.0e`, {glue:text}`word` in {run-time}`a minute`. Of\n"
        "{glue:text}`one:.0f`. There are none.\n\nSee {numref}`fig` and {numref}`fig-two`.\n\n"
        f"{CELL % GLUE}{FIGURE % 'fig'}{EXERCISE % 'fig'}{SOLUTION % ('fig', FIGURE % 'fig-two')}"
    ),
    "page-tags": "".join(CELL.replace("\n%s", f"\n:tags: [{tags}]\nx = '{tags}'") for tags in LABELS),
    "page-cited": "{cite:p}`three`, {cite:t}`someone`, {cite:t}`three`\n",
    "page-solved": (
        f"{EXERCISE % 'one'}{SOLUTION % ('one', f'So.{chr(10) * 2}{CELL % 1}Thus.')}{CELL % 2}"
        f"{EXERCISE % 'two'}{SOLUTION % ('two', CELL % 3)}"
    ),
}
# § stands for the number of the chapter.
CONVERSIONS = [
    ("As {cite:p}`three` says.", "As [A. *et al.*, 2003] says."),
    ("As {cite:t}`someone` says.", "As One [2001] says."),
    ("{cite:p}`someone,undated`", "[One, 2001, A Group, n.d.]"),
    ("{cite:t}`accents`", "van\N{NO-BREAK SPACE}der Waerden and Müller [1931]"),
    ("See {ref}`a\nsection <there>`.", "See a section."),
    ("Set {scene}`the scene <width=16>`.", "Set the scene."),
    ("See {ref}`there` and {eq}`far`.", "See A section and (1.1)."),
    ("See {doc}`the other <page-other>` and {doc}`/book/intro`.", "See the other and A tiny book."),
    ("A [link](https://example.org/a_b) and <https://example.org>.", "A [link](https://example.org/a_b) and ["),
    ("```{note}\nOne\n\ntwo.\n```", "> **Note.**\n> \n> One\n> \n> two."),
    (":::{admonition} A *title*\n:class: tip\nOne.\n:::", "> **A *title*.**\n> \n> One."),
    ("````{note}\n```{tip}\nOne.\n```\n````", "> **Note.**\n> \n> > **Tip.**\n> > \n> > One."),
    ("```{admonition} What?\nThis.\n```", "> **What?**\n> \n> This."),
    (
        "```{admonition} A *title*\n:class: tip, dropdown\nOne.\n```",
        "<details>\n<summary><strong>A <em>title</em>.</strong></summary>\n\nOne.\n\n</details>",
    ),
    ("(here)=\n## There\n\nSee.", "## There\n\nSee."),
    ("$$ x $$ (e.x)\n\n{eq}`e.x`", "$$ x \\tag{§.1} $$\n\n(§.1)"),
    ("$$\nx % one\n+ 1 \\%\n$$", "$$ x + 1 \\% $$"),
    ("$$\na &= b \\\\\n&= c\n$$ (aligned)", "$$ \\begin{split} a &= b \\\\ &= c \\end{split} \\tag{§.1} $$"),
    ("$$\na\n\nb\n$$", "$$ \\begin{split} a \\\\ b \\end{split} $$"),
    ("\\begin{align*}\nx &= y\n\\end{align*}", "$$ \\begin{align*} x &= y \\end{align*} $$"),
    ("So $\\frac{{a}}{b}$ and $[a](b)_*c*$,\n$x +\ny$, \\$1.", "$\\frac{{a}}{b}$ and $[a](b)_*c*$,\n$x + y$, \\$1."),
    (
        "```{prf:theorem} One $x$\n:label: law\nLet\n\n$$\nx\n$$ (law-x)\n```\n\nBy {prf:ref}`law` and {eq}`law-x`.",
        "> **Theorem §.1** (One $x$).\n> \n> Let\n> \n> $$ x \\tag{§.1} $$\n\nBy Theorem §.1 and (§.1).",
    ),
    ("```{prf:remark}\n:nonumber:\nIt is.\n```", "> **Remark**.\n> \n> It is."),
    ("```{prf:proof}\nClear\nby {ref}`there`.\n```", "**Proof.** Clear\nby A section. $\\square$"),
    ("```{prf:proof}\nTwo.\n\n- One.\n- Two.\n```", "**Proof.** Two.\n\n- One.\n- Two.\n\n$\\square$"),
    ("```{prf:proof}\n:class: dropdown\nClear.\n```", "<strong>Proof</strong></summary>\n\nClear. $\\square$\n\n</d"),
    (
        "```{table} Ones $x$\n:name: ones\n| a | b |\n|---|--:|\n| `1` | |\n```\n\n{numref}`ones`, {numref}`%s <ones>`",
        "*Table §.1.* Ones $x$\n\n| a | b |\n| --- | --: |\n| `1` |  |\n\nTable §.1, §.1",
    ),
    ("- a\n- b\n  1. c\n  2. d\n\n     e", "- a\n\n- b\n\n  1. c\n\n  2. d\n\n     e"),
    ("3. a\n4. b", "3. a\n4. b"),
    ("> a\n> b", "> a\n> b"),
    ("```python\n'{eq}`x`'\n\n% $R$ *a*\n```", "```python\n'{eq}`x`'\n\n% $R$ *a*\n```"),
    ("````\n```\na\n```\n````", "````\n```\na\n```\n````"),
    ("`{eq}`, ``a `b` c``, `a*b_`", "`{eq}`, `` a `b` c ``, `a*b_`"),
    ("a\\*b\\*, a_b, \\_c_, \\`d\\`, \\<b>, 1 < 2, &amp;lt;", "a\\*b\\*, a_b, \\_c\\_, \\`d\\`, \\<b>, 1 < 2, \\&lt;"),
    ("a\n\\- b\n1\\. c\n\\# d", "a\n\\- b\n1\\. c\n\\# d"),
    ("{{ key }} and *a **b***\n\n% a comment\n\n+++\n\n---\n\nc", "Value and *a **b***\n\n---\n\nc"),
]
# What has no plain form, the line of it (from 0), and what is said of it.
WARNINGS = [
    ("![alt](../_assets/logo.svg)", 0, "image: 'alt'"),
    (":::{figure} ../_assets/logo.svg\n:alt: A logo.\n:::", 0, "figure"),
    ("Words[^1].\n\n[^1]: A note.", 0, "footnote_reference: '1'"),
    ("Words\n\n```{dropdown} Title\n\nInside.\n```", 4, "dropdown_main"),
    ("Words\n\n````{note}\n```{tip}\nA <b>bold</b> word.\n```\n````", 4, "raw: '<b>'"),
    ("- Words\n- A <br> word.", 1, "raw"),
    ("| a |\n|---|\n| $\\lvert$ \\| |", 2, "a table with bars or lines in a cell"),
]


def write_book(folder):
    for name in ("_ext", "_assets", "_templates", "tools"):
        shutil.copytree(ROOT / name, folder / name)
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    config["execute"]["exclude_patterns"] = ["**/page-*"]
    config["parse"]["myst_substitutions"] = {"key": "Value"}
    (folder / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "book").mkdir()
    (folder / "book/references.bib").write_text(LIBRARY, encoding="utf-8")
    (folder / "book/intro.md").write_text(INTRO, encoding="utf-8")
    pages = {f"page-{index}": text for index, (text, _) in enumerate(CONVERSIONS)} | PAGES
    pages |= {f"page-bad-{index}": text for index, (text, *_) in enumerate(WARNINGS)}
    (folder / "book/page-other.md").write_text(OTHER, encoding="utf-8")
    for name, text in pages.items():
        (folder / f"book/{name}.md").write_text(f"{HEADER}\n{text}\n", encoding="utf-8")
    toc = [{"numbered": True, "chapters": [{"file": f"book/{name}"} for name in ("page-other", *pages)]}]
    toc = {"format": "jb-book", "root": "book/intro", "parts": toc}
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc), encoding="utf-8")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The folder of the book, built by the first of the processes that test."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "book-of-notebooks"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            write_book(folder)
            environment = {k: v for k, v in os.environ.items() if not k.startswith(("BOOK_", "GITHUB_"))}
            with (folder / "log").open("w") as log:
                subprocess.run(
                    [ROOT / ".venv/bin/jupyter-book", "build", folder, "-q", "--all"],
                    env=environment | {"NO_COLOR": "1"},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    check=True,
                )
    return folder


def read(book, name):
    notebook = nbformat.read(book / f"_build/html/notebooks/{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    return notebook


def markdown(book, name):
    """The Markdown cells of a notebook, joined."""
    return "\n\n".join(cell.source for cell in read(book, name).cells if cell.cell_type == "markdown")


def code(book, name):
    return [cell for cell in read(book, name).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("index", range(len(CONVERSIONS)), ids=lambda index: CONVERSIONS[index][0])
def test_conversions(book, index):
    assert CONVERSIONS[index][1].replace("§", str(index + 2)) in markdown(book, f"page-{index}")


@pytest.mark.parametrize("index", range(len(WARNINGS)), ids=lambda index: WARNINGS[index][0])
def test_what_has_no_plain_form_is_a_warning_with_its_line(book, index):
    _, offset, what = WARNINGS[index]
    line = HEADER.count("\n") + 2 + offset
    place = rf"book/page-bad-{index}\.md:{line}"
    assert re.search(rf"{place}: WARNING: notebooks: no plain form of {re.escape(what)}", (book / "log").read_text())


def test_what_has_a_plain_form_is_no_warning(book):
    warnings = re.findall(r"(\S*): WARNING: notebooks", (book / "log").read_text())
    assert {re.search(r"book/([\w-]+)\.md", place)[1] for place in warnings} == {
        f"page-bad-{index}" for index in range(len(WARNINGS))
    }


def test_values_of_an_executed_chapter(book):
    text = markdown(book, "executed")
    took = re.search(r"It is −0\.12, 10⁻⁶, fine in (\d+ s)\. Of\n1\\\. There are none\.", text)[1]
    number = len(CONVERSIONS) + 2
    assert text.startswith(
        f"*Chapter {number} of the executable book* Kernel Regimes. It runs in about {took}. No GPU is needed.\n"
    )


def test_figures_have_their_captions_below_them(book):
    number, cells = len(CONVERSIONS) + 2, read(book, "executed").cells
    caption = f"*Figure {number}.%s.* A curve, after One [2001]."
    assert f"See Figure {number}.1 and Figure {number}.2." in markdown(book, "executed")
    drawn = [index for index, cell in enumerate(cells) if "plt.plot" in cell.source]
    assert cells[drawn[0] + 1].source.startswith(caption % 1)
    assert cells[drawn[1] + 1].source.endswith(f"continued</strong></summary>\n\n{caption % 2}\n\n</details>")


def test_references_are_listed_once(book):
    for page in ("page-cited", "executed"):
        cells = read(book, page).cells
        listed = cells[-1].source.splitlines()
        assert listed[:2] == ["## References", ""]
        assert "- Some One. *A Book*. A House, 2001." in listed
        assert len(listed) == (4 if page == "page-cited" else 3)


def test_exercises_and_their_solutions_are_folded(book):
    text, number = markdown(book, "page-solved"), len(CONVERSIONS) + 5
    title = f"Exercise {number}.1 (Is $x &lt; 1$ &amp; <code>f</code>?)".replace("&lt;", "<")
    assert f"<details open>\n<summary><strong>{title}</strong></summary>\n\nSay $x$.\n\n</details>" in text
    solution = f"<details>\n<summary><strong>Solution to Exercise {number}.%s</strong></summary>\n\n%s\n\n</details>"
    assert solution % (1, "So.") in text
    assert solution % ("1, continued", "Thus.") in text
    assert solution % (2, "Its code is in the folded cells that follow.") in text
    assert not re.search(r"solution-|dropdown|:label:", text)


def test_the_code_of_a_solution_is_folded_and_no_other(book):
    assert [cell.source for cell in code(book, "page-solved")] == [
        "# @title Show code\n1",
        "2",
        "# @title Show code\n3",
    ]
    assert [cell.metadata.get("cellView") for cell in code(book, "page-solved")] == ["form", None, "form"]


def test_tags_fold_code(book):
    cells = code(book, "page-tags")
    for cell, (tags, label) in zip(cells, LABELS.items(), strict=True):
        folded = {"jupyter": {"source_hidden": True}, "cellView": "form"} if label else {}
        heeded = {"tags": ["raises-exception"]} if tags == "raises-exception" else {}
        assert cell.metadata == folded | heeded, tags
        assert cell.source == (f"# @title {label}\n" if label else "") + f"x = '{tags}'"


def test_code_is_that_of_the_chapter(book):
    for page in ("executed", "page-tags", "page-solved"):
        chapter = jupytext.read(book / f"book/{page}.md")
        sources = [re.sub(r"\A# @title .*\n", "", cell.source) for cell in code(book, page)]
        assert sources == [cell.source for cell in chapter.cells if cell.cell_type == "code"]


def test_notebooks_differ_in_nothing_but_their_content(book):
    for path in (book / "_build/html/notebooks").rglob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        assert [cell.id for cell in notebook.cells] == [f"cell-{index:03d}" for index in range(len(notebook.cells))]
        assert notebook.metadata == {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
        }
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def test_macros_are_an_error():
    with pytest.raises(ConfigError, match=r"expected no macros.*got \['R'\]"):
        _refuse_macros(None, SimpleNamespace(mathjax3_config={"tex": {"macros": {"R": r"\mathbb{R}"}}}))
    _refuse_macros(None, SimpleNamespace(mathjax3_config=None))


@pytest.mark.parametrize(
    ("in_colab", "expected"), [(True, [("pip", "install --quiet --no-deps git+file:///x@1")]), (False, [])]
)
def test_package_is_installed_in_colab_alone(monkeypatch, in_colab, expected):
    """The first code cell, as IPython runs it."""
    if in_colab:
        monkeypatch.setitem(sys.modules, "google.colab", object())
    called = []
    shell = SimpleNamespace(run_line_magic=lambda name, line: called.append((name, line)))
    source = TransformerManager().transform_cell(INSTALL.format(source="git+file:///x@1"))
    exec(source, {"get_ipython": lambda: shell})
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
