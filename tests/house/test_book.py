"""Builds tiny books with the book's own configuration and commands: good ones pass, and each defect fails by name."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import psutil
import pytest
from chapters import pages
from conftest import ROOT
from execution_cache import executed_notebook

from ntk_helpers.book.claims import recorded_claims

HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# A chapter
"""
GOOD = (
    HEADER
    + """
A number {glue:text}`answer:.1f`, after {cite:t}`someone`, in {eq}`sum`.

$$ 1 + 1 = 2 $$ (sum)

```{code-cell} ipython3
import time

from ntk_helpers.book.claims import claim

print("executed at", time.time_ns())
claim("answer", "The answer.", 42.0, (40, 44), kind="threshold", source="someone")
```
"""
)
TOC = "format: jb-book\nroot: book/intro\nparts:\n  - numbered: true\n    chapters:\n      - file: book/chapter\n"
BIBLIOGRAPHY = "@book{someone, author = {Some One}, title = {A Book}, publisher = {A House}, year = {2001}}\n"
CACHED = "chapter.md: Using cached notebook"
INTRO = "# A tiny book\n\n```{bibliography}\n```\n"


@pytest.fixture
def tiny_book(tmp_path):
    """Writes a book of one chapter and returns its folder."""

    def write(chapter):
        for folder in ("_ext", "_assets", "_templates", "tools"):
            shutil.copytree(ROOT / folder, tmp_path / folder, dirs_exist_ok=True)
        shutil.copy(ROOT / "_config.yml", tmp_path)
        (tmp_path / "book").mkdir(exist_ok=True)
        pages = {"references.bib": BIBLIOGRAPHY, "intro.md": INTRO, "chapter.md": chapter}
        for name, text in pages.items():
            (tmp_path / "book" / name).write_text(text, encoding="utf-8")
        (tmp_path / "_toc.yml").write_text(TOC, encoding="utf-8")
        return tmp_path

    return write


def make(target, folder, **environment):
    """Run make for the book in a folder; return the exit status and everything that was printed."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "BOOK_", "GITHUB_"))}
    result = subprocess.run(
        ["make", "--no-print-directory", target, f"BOOK={folder}"],
        cwd=ROOT,
        env=clean | environment | {"NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout


def page(folder, name="chapter"):
    return (folder / f"_build/html/book/{name}.html").read_text(encoding="utf-8")


def executed_at(folder):
    return re.search(r"executed at (\d+)", page(folder))[1]


def test_a_good_book(tiny_book):
    folder = tiny_book(GOOD)
    status, printed = make("book", folder)
    assert status == 0, printed
    assert f"The book is at {folder}/_build/html/index.html" in printed
    assert (folder / "_build/html/index.html").exists()
    assert re.search(r"book/chapter: \d+\.\d s\n", printed)
    assert CACHED in printed
    html = page(folder)
    assert "42.0" in html
    assert "One [2001]" in re.sub("<.*?>", "", html)
    assert 'class="claim"' in html
    assert "github.com" not in html
    assert not re.search(r'(src|href)="(https?:)?//', html)
    assert (folder / "_build/html/_static/mathjax/tex-mml-chtml.js").exists()
    assert not (folder / "_build/html/sitemap.xml").exists()
    assert "Cite this chapter" in html


def test_the_run_that_was_tested_is_the_run_that_is_read(tiny_book):
    folder = tiny_book(GOOD)
    printed = [make(target, folder)[1] for target in ("chapters", "chapters", "site")]
    executed = executed_notebook(folder, folder / "book/chapter.md")
    (output,) = (out for cell in executed.notebook.cells for out in cell.get("outputs", []) if "text" in out)
    assert output["text"] == f"executed at {executed_at(folder)}\n"
    assert "0 chapters have been executed as they are, 1 are to be" in printed[0]
    assert "1 chapters have been executed as they are, 0 are to be" in printed[1]
    assert CACHED in printed[2]
    assert f"Executed in {executed.run_time}" in page(folder)


def test_a_chapter_that_fails_does_not_keep_others_from_being_executed(tiny_book):
    folder = tiny_book(GOOD)
    shutil.copy(folder / "book/chapter.md", folder / "book/other.md")
    (folder / "_toc.yml").write_text(TOC + "".join(f"      - file: book/{name}\n" for name in ("dead", "other")))
    (folder / "book/chapter.md").write_text(HEADER + "\n" + CELL % "x = 1\n\n1 / 0", encoding="utf-8")
    (folder / "book/dead.md").write_text(HEADER + "\n" + CELL % "import os" + CELL % "os._exit(137)", encoding="utf-8")
    status, printed = make("book", folder)
    assert status != 0
    line = HEADER.count("\n") + 2
    assert f"{folder}/book/chapter.md:{line}: the cell fails: ZeroDivisionError: division by zero" in printed
    assert f"{folder}/book/dead.md:{line + 3}: the cell fails: Kernel died" in printed
    assert not (folder / "_build/html").exists()
    assert executed_notebook(folder, folder / "book/chapter.md") is None
    assert executed_notebook(folder, folder / "book/other.md") is not None


PATIENT = """import sys
from pathlib import Path

from execute_chapters import execute

execute(Path(sys.argv[1]), every=0.2)"""


def test_chapters_that_take_long_are_told_of(tiny_book):
    folder = tiny_book(HEADER + "\n" + CELL % "1" + CELL % "import time\n\ntime.sleep(2)")
    run = subprocess.run([sys.executable, "-c", PATIENT, folder], cwd=ROOT / "tools", stdout=subprocess.PIPE, text=True)
    assert re.search(r"^running: book/chapter for \d+ s \(cell 3 of 3\)$", run.stdout, re.M), run.stdout


CHANGE = """from pathlib import Path

path = Path(%r)
path.write_text(path.read_text().replace("(40, 44)", "(40, 45)") + "\\n\\n")"""


def test_outputs_belong_to_what_ran(tiny_book, tmp_path_factory):
    """What changes while chapters run is executed by the next run."""
    folder, packages = tiny_book(""), tmp_path_factory.mktemp("packages")
    chapter, package = folder / "book/chapter.md", packages / "ntk_helpers/book/claims.py"
    shutil.copytree(ROOT / "ntk_helpers", packages / "ntk_helpers")
    shutil.copy(ROOT / "requirements.txt", packages)
    chapter.write_text(source := GOOD + CELL % (CHANGE % str(chapter)), encoding="utf-8")
    status, printed = make("chapters", folder)
    assert status == 0, printed
    assert executed_notebook(folder, chapter) is None
    chapter.write_text(source, encoding="utf-8")
    assert executed_notebook(folder, chapter) is not None
    chapter.write_text(GOOD + CELL % (CHANGE % str(package)), encoding="utf-8")
    status, printed = make("chapters", folder, PYTHONPATH=str(packages))
    assert status != 0
    assert "the package changed while chapters ran" in printed


TERMINATE = """import time
from pathlib import Path

import psutil

Path(%r).with_suffix(".pid").write_text(str(psutil.Process().pid))
psutil.Process().parents()[1].terminate()
time.sleep(60)"""


def test_nothing_runs_on_after_an_interruption(tiny_book):
    folder = tiny_book("")
    paths = [folder / "book/other.md", folder / "book/chapter.md"]  # the last chapter comes first
    for path in paths:
        path.write_text(HEADER + "\n" + CELL % (TERMINATE % str(path)), encoding="utf-8")
    (folder / "_toc.yml").write_text(TOC + "      - file: book/other\n", encoding="utf-8")
    status, printed = make("chapters", folder, LOKY_MAX_CPU_COUNT="1")  # one at a time
    assert status != 0
    assert "interrupted: what was running has been ended" in printed
    kernel = int(paths[0].with_suffix(".pid").read_text())
    assert not [p for p in psutil.process_iter() if p.pid == kernel and p.status() != psutil.STATUS_ZOMBIE]
    assert not paths[1].with_suffix(".pid").exists()


IMAGES = """
![The loss at width=64.](../_assets/logo.png)

```{image} é.png
:alt: Another.
```

`<img src="code.png">`
"""


def test_images_say_their_size(tiny_book):
    folder = tiny_book(HEADER)
    shutil.copy(ROOT / "_assets/logo.png", folder / "book/é.png")
    (folder / "book/intro.md").write_text(INTRO + IMAGES, encoding="utf-8")
    status, printed = make("site", folder)
    assert status == 0, printed
    html = page(folder, "intro")
    for alt in ("The loss at width=64.", "Another."):
        assert re.search(rf'<img alt="{alt}" src="[^"]*" width="96" height="96"', html)
    assert '&lt;img</span> <span class="pre">src=&quot;code.png&quot;&gt;</span>' in html


ALL_LABELS = """
(here)=
## A section of its own

```{code-cell} ipython3
---
mystnb:
  image: {alt: A line.}
  figure: {name: fig-line, caption: A line.}
---
import matplotlib.pyplot as plt

plt.plot([0, 1]);
```

```{prf:theorem} Someone
:label: law-of-one

$$
x
$$ (in_law)
```

```{prf:lemma}
:label: lemma-one
It is.
```

```{prf:theorem}
:label: law_of_two
It is.
```

```{prf:proof}
Clear.
```

```{table} Ones
:name: tab-ones

| a |
|---|
| 1 |
```

````{note}
```{exercise} Why?
:label: ex_why
It is $x$.
```
````

$$
y
$$ (y:two)

(2nd.section)=
## Another section of its own

$$
z
$$ (2nd.section)

{ref}`2nd.section`, {eq}`2nd.section`,
{ref}`here`, {eq}`in_law`, {eq}`y:two`, {prf:ref}`law-of-one`, {prf:ref}`lemma-one`, {prf:ref}`law_of_two`,
{numref}`fig-line`, {numref}`tab-ones`, {ref}`ex_why`, {doc}`intro`,
{ref}`ex-first`, {ref}`ex-last`, {eq}`last`.
"""


def test_plain_notebooks_say_the_numbers_and_places_of_the_site(tiny_book):
    folder = tiny_book(HEADER + ALL_LABELS)
    text = HEADER + "\n```{exercise} First\n:label: ex-first\nIt is.\n```\n\n{eq}`y:two`, {ref}`ex-last`\n"
    (folder / "book/first.md").write_text(text, encoding="utf-8")
    toc = TOC.replace("- file", "- file: book/first\n      - file") + "  - chapters:\n"
    for name in ("next-to-last", "last"):  # without a number, these count on together
        words = f"# The {name}\n\n$$ x $$ ({name})\n\n```{{exercise}}\n:label: ex-{name}\nIt is.\n```\n"
        (folder / f"book/{name}.md").write_text(words, encoding="utf-8")
        toc += f"      - file: book/{name}\n"
    (folder / "_toc.yml").write_text(toc, encoding="utf-8")
    status, printed = make("site", folder, BOOK_REPOSITORY="owner/name")
    assert status == 0, printed
    source = (folder / "_build/html/notebooks/chapter.ipynb").read_text(encoding="utf-8")
    text = "\n".join(cell.source for cell in nbformat.reads(source, as_version=4).cells)
    links = re.findall(r"\[([^\]]*)\]\(https://owner\.github\.io/name/book/([\w-]+)\.html#?([^)]*)\)", text)
    assert {said for said, *_ in links} >= {
        *("(2.1)", "(2.2)", "(2.3)", "Theorem 2.1", "Theorem 2.2", "Lemma 2.1", "Figure 2.1", "Table 2.1"),
        *("A section of its own", "Another section of its own", "A tiny book", "Exercise 1.1", "Exercise 2.1"),
        *("Exercise 2", "(2)", "Read it on its page"),
    }
    for said, name, place in links[1:]:  # the first leads to the notebook's own page
        html = page(folder, name)
        start = html.index(f'id="{place}"') if place else 0
        assert said in re.sub("<[^>]*>", "", html[start : start + 3000]), said
    assert re.search(r"%pip install --quiet --no-deps git\+https://github\.com/owner/name\n?$", text, re.M)


NESTED = """format: jb-book
root: book/intro
parts:
  - numbered: true
    chapters:
      - file: book/first
        sections: [{file: book/below}, {file: book/further}]
      - file: book/second
  - chapters: [{file: book/apart}]
  - numbered: true
    chapters: [{file: book/third}]
"""


def test_pages_are_those_of_the_site_and_numbered_as_there(tiny_book):
    """What is numbered on a page that goes deeper counts on from its chapter."""
    folder = tiny_book(HEADER)
    for name in re.findall(r"book/(\w+)", NESTED)[1:]:
        text = f"---\ndeeper: More.\n---\n\n# Page {name}\n\n$$ x $$ ({name})\n"
        (folder / f"book/{name}.md").write_text(text, encoding="utf-8")
    (folder / "_toc.yml").write_text(NESTED, encoding="utf-8")
    status, printed = make("site", folder)
    assert status == 0, printed
    found = pages(folder)
    assert [p.docname for p in found] == re.findall(r"book/\w+", NESTED)
    assert {p.docname: p.parent for p in found if p.parent} == {f"book/{n}": "book/first" for n in ("below", "further")}
    for one in found[1:]:
        html = page(folder, one.docname.removeprefix("book/"))
        equation, title = (re.findall(tag, html)[-1] for tag in (r'class="eqno">\(([\d.]+)\)', r"<h1>(.*)</h1>"))
        number = re.sub("<[^>]*>", "", title).partition("Page")[0].rstrip(". ")
        assert equation.rpartition(".")[0] == str(one.number or "")
        assert number.split(".")[0] == str(one.number or "")
        assert ("." in number) == bool(one.parent)


def test_outputs_are_reused_until_the_package_changes(tiny_book, tmp_path_factory):
    folder, packages = tiny_book(GOOD), tmp_path_factory.mktemp("packages")
    shutil.copytree(ROOT / "ntk_helpers", packages / "ntk_helpers")
    shutil.copy(ROOT / "requirements.txt", packages)
    times = []
    for change in ("", "", "\n# a change\n"):
        with (packages / "ntk_helpers" / "book" / "claims.py").open("a") as source:
            source.write(change)
        status, printed = make("site", folder, PYTHONPATH=str(packages))
        assert status == 0, printed
        times.append(executed_at(folder))
        assert (CACHED in printed) == (len(times) == 2)
    assert times[0] == times[1] != times[2]


def test_claims_are_collected_from_cached_outputs(tiny_book):
    folder = tiny_book(GOOD)
    chapter = folder / "book/chapter.md"
    assert executed_notebook(folder, chapter) is None
    for _ in range(2):
        status, printed = make("site", folder)
        assert status == 0, printed
    executed = executed_notebook(folder, chapter)
    assert executed.seconds > 0
    claims = [(record["name"], record["measured"], record["holds"]) for record in recorded_claims(executed.notebook)]
    assert claims == [("answer", 42.0, True)]
    chapter.write_text(GOOD.replace("42.0", "43.0"), encoding="utf-8")
    assert executed_notebook(folder, chapter) is None


def test_buttons_where_the_repository_is_known(tiny_book):
    folder = tiny_book(HEADER + "\nWords.\n")
    status, printed = make("site", folder, BOOK_REPOSITORY="owner/name")
    assert status == 0, printed
    html = page(folder)
    assert "https://github.com/owner/name/edit/main/book/chapter.md" in html
    assert "https://github.com/owner/name/issues/new" in html
    assert "https://colab.research.google.com/github/owner/name/blob/gh-pages/notebooks/chapter.ipynb" in html
    assert '<link rel="canonical" href="https://owner.github.io/name/book/chapter.html"' in html
    assert re.search(r'<meta property="og:description" content="Words\.', html)
    sitemap = (folder / "_build/html/sitemap.xml").read_text(encoding="utf-8")
    assert "<loc>https://owner.github.io/name/book/chapter.html</loc>" in sitemap


CELL = "```{code-cell} ipython3\n%s\n```\n"
CLAIM = """from ntk_helpers.book.claims import claim

claim("answer", "The answer.", 42.0, (0, 1), kind="threshold", source="nobody")"""
PLOT = """import matplotlib.pyplot as plt

plt.plot([0, 1]);"""
WARNING = """import warnings

warnings.warn("careful")"""
# What is wrong: the chapter's text, the line of it that is named (from 0), and what is said.
DEFECTS = {
    "a live figure that there is not": ("```{live} sandbox\n```\n", 0, "live: expected one of .* got 'sandbox'"),
    "a cell that fails": (CELL % "1 / 0", 0, "the cell fails: ZeroDivisionError: division by zero"),
    "a claim that does not hold": (CELL % CLAIM, 0, "the cell fails: ClaimError: Claim 'answer' does not hold"),
    "output on stderr": (CELL % WARNING, 2, "stderr was found in the cell outputs"),
    "a figure without alt text": (CELL % PLOT, 0, "the figure has no alt text"),
    "an image without alt text": ("![](../_assets/logo.svg)\n", 0, "the figure has no alt text"),
    "an image in HTML without alt text": ('<img src="x.png">\n', 0, "the figure has no alt text"),
    "an unresolved reference": ("As {ref}`nowhere` says.\n", 0, "nowhere"),
    "an unresolved equation": ("By {eq}`nowhere`.\n", 0, "nowhere"),
    "an unresolved citation": ("As {cite:p}`nobody` says.\n", 0, 'could not find bibtex key "nobody"'),
    "an unresolved glue": ("It is {glue:text}`nothing:.2f`.\n", 0, "No key 'nothing' found in glue data"),
    "a warning of Sphinx": ("Words.\n\n```{nonsense}\n```\n", 2, "Unknown directive type: 'nonsense'"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_fails_and_is_named_with_its_line(tiny_book, defect):
    text, offset, message = DEFECTS[defect]
    folder = tiny_book(HEADER + "\n" + text)
    line = HEADER.count("\n") + 2 + offset
    for _ in range(2 if defect == "a cell that fails" else 1):  # a second run must not pass in silence
        status, printed = make("site", folder)
        complaint = re.search(rf"{folder}/book/chapter\.md:{line}: (WARNING|ERROR): .*({message}).*", printed)
        assert status != 0
        assert complaint, printed
        print(f"{defect}: exit status {status}, {complaint[0]}")


def test_a_repository_address_of_wrong_form_is_an_error(tiny_book):
    status, printed = make("site", tiny_book(HEADER), BOOK_REPOSITORY="https://github.com/owner/name")
    assert status != 0
    assert "BOOK_REPOSITORY: expected owner/name, got 'https://github.com/owner/name'" in printed
