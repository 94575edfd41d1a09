import lint_chapters
import pytest
from lint_chapters import cells_of, fixed, going_deeper, lint, redirects, ruff
from test_book import HEADER

CELL = "```{code-cell} ipython3\n---\nmystnb:\n  image:\n    alt: x = {1,2}\n---\nCODE```\n"
LINE = HEADER.count("\n") + 2
CLAIM = 'claim("a", "A.", 1.0, 1, tolerance=0.1, kind="%s", source="%s")\n'


def chapter(code, header=""):
    """A chapter of one cell."""
    cell = f"```{{code-cell}} ipython3\n{header}{code}```\n" if header else CELL.replace("CODE", code)
    return HEADER + "\n" + cell + "\nWords.\n"


def complaints(text, path=lint_chapters.ROOT / "book/chapter.md"):
    """What is wrong with a chapter of this text, as lines and texts."""
    ((formatted, findings),) = ruff([text])
    return list(lint(path, text, formatted, findings))


def fix(text):
    ((formatted, _),) = ruff([text])
    return fixed(text, formatted)


def test_a_clean_cell():
    assert complaints(chapter("x = {1, 2}\nx;\n")) == []
    assert complaints(chapter("x = {1, 2}\n", ":tags: [hide-input]\n\n")) == []


def test_a_cell_that_is_not_formatted():
    text = chapter("x = {1,2}\n")
    assert complaints(text) == [(LINE, "the cell is not formatted; run make format")]
    assert fix(text) == chapter("x = {1, 2}\n")


def test_a_mistake_is_named_with_its_line():
    ((line, complaint),) = complaints(chapter("x = 1\ny = undefined\n"))
    assert line == LINE + 7
    assert complaint.startswith("F821 Undefined name `undefined`")


def test_a_cell_that_cannot_be_parsed_is_named_with_its_line():
    assert (LINE + 6) in [line for line, complaint in complaints(chapter("x = (\n")) if "invalid-syntax" in complaint]


IMPORTS = "import matplotlib.pyplot as plt\n\nfrom ntk_helpers.book import animate, claim, glue\n\n"
MUST_BE_FOLDED = {
    'claim("a", "A.", 1.0, 1, tolerance=0.1, kind="law", source="a")\n': "hide-input, check",
    "fig, ax = plt.subplots()\n": "hide-input, drawing",
    'animate(None, None, [1, 2], alt="A.")\n': "hide-input, drawing",
    'for i in range(2):\n    glue(f"{i}", i)\n': "hide-input, numbers",
    'square = 2**2\nglue("square", square)\n': "hide-input, numbers",
}


@pytest.mark.parametrize("code", MUST_BE_FOLDED)
def test_cells_are_folded_by_what_they_are_for(code):
    text, tags = chapter(IMPORTS + code), MUST_BE_FOLDED[code]
    if tags == "hide-input, numbers":  # with the imports in a cell of their own
        text = chapter(IMPORTS).replace("\nWords.", f"\n{CELL.replace('CODE', code)}\nWords.")
    found = [complaint for _, complaint in complaints(text) if "folded" in complaint]
    assert found == [f"the cell is not folded as what it is for: expected tags {tags.split(', ')}; run make format"]
    assert f"---\ntags: [{tags}]\nmystnb:\n" in fix(text)
    assert not [complaint for _, complaint in complaints(fix(text)) if "folded" in complaint]


def test_a_cell_that_computes_what_is_used_later_is_no_mere_number():
    code = 'square = 2**2\nglue("square", square)\n'
    text = chapter(code) + "\n" + CELL.replace("CODE", "square\n")
    assert not [c for _, c in complaints(text) if "folded" in c]


def test_tags_are_set_where_a_cell_has_no_options_and_others_stay():
    code = CLAIM % ("law", "me")
    without = HEADER + f"\n```{{code-cell}} ipython3\n{code}```\n"
    assert fix(without) == HEADER + f"\n```{{code-cell}} ipython3\n:tags: [hide-input, check]\n\n{code}```\n"
    tagged = chapter(code, ":tags: [raises-exception, remove-input]\n\n")
    assert ":tags: [hide-input, check, raises-exception]\n\n" in fix(tagged)
    assert fix(fix(tagged)) == fix(tagged)


def test_only_identities_may_be_folded_away():
    header = ":tags: [hide-cell, checks]\n\n"
    for kind, fine in {"identity": True, "law": False}.items():
        found = [c for _, c in complaints(chapter(CLAIM % (kind, "me"), header)) if "folded" in c]
        assert (found == []) == fine


def test_a_claim_without_a_kind_is_named_with_its_line():
    text = chapter('x = 1\nclaim("a", "A.", 1.0, 1, tolerance=0.1, source="me")\n')
    assert (
        LINE + 7,
        "the claim has no kind: expected kind= one of identity, theorem, law, reproduction, threshold",
    ) in (complaints(text))
    assert "the claim has no kind" in str(complaints(chapter(CLAIM % ("guess", "me"))))


def test_a_long_source_is_named_with_its_line():
    found = complaints(chapter(CLAIM % ("law", "for " * 16)))
    assert (LINE + 6, "the source of the claim has 16 words: expected at most 15") in found


def test_too_many_imports():
    text = chapter("".join(f"import a{i}\n" for i in range(9)))
    assert (LINE, "the first cell has 9 lines of imports: expected at most 8") in complaints(text)


PROSE = "Some words of prose. "
STEPS = ["Check", "Check", "Check", "Pencil", "Pencil", "Experiment", "Open"]
EXERCISES = "".join(f"```{{exercise}} {step}: so?\n```\n" for step in STEPS)
GOOD = f"""# Why?

{PROSE}

![A picture.](a.png)

{PROSE * 20}

## Recap

- It is so.

## Exercises

{EXERCISES}

## What this does not show

Much.
"""
VISIBLE = "```{code-cell} ipython3\nx = 1\n```\n\n"
FAULTS = {
    "2047 words: expected at most 2000": ("## Recap", "many words " * 980 + "\n\n## Recap"),
    "21 visible cells: expected at most 20": ("## Recap", (VISIBLE + "So it is.\n\n") * 21 + "## Recap"),
    "7 lines in the median visible cell": ("## Recap", VISIBLE.replace("x = 1\n", "x = 1\n" * 7) + "## Recap"),
    "more than 3 visible cells in a row": ("## Recap", VISIBLE * 4 + "## Recap"),
    "3 numbers in the opening": (f"?\n\n{PROSE}", f"?\n\n{PROSE}" + "{glue:text}`a:.1f` " * 3),
    "the first picture comes late": ("![A picture.](a.png)", ""),
    "no recap": ("## Recap", "## Summary"),
    "6 lines in the recap": ("- It is so.\n", "- It is so.\n" * 6),
    "2 exercises titled Check: expected at least 3": ("{exercise} Check", "{exercise} Try"),
    "0 exercises titled Open": ("{exercise} Open", "{exercise} Try"),
    "expected a section: What this does not show": ("## What this does not show", "## Limits"),
}


def core(text):
    return complaints(HEADER.removesuffix("# A chapter\n") + text, lint_chapters.ROOT / "book/start/page.md")


def test_a_good_core_page():
    assert core(GOOD) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_core_page_that_is_too_much_is_told_so(fault):
    old, new = FAULTS[fault]
    assert GOOD.count(old) >= 1
    found = core(GOOD.replace(old, new, 1))
    assert [complaint[: len(fault)] for _, complaint in found] == [fault]
    assert all(line >= 1 for line, _ in found)


def test_folded_text_and_cells_do_not_count():
    folded = "```{prf:proof}\n:class: dropdown\n" + "many words " * 980 + "\n```\n\n"
    hidden = VISIBLE.replace("x = 1", ":tags: [hide-input]\n\nx = 1") * 21
    assert core(GOOD.replace("## Recap", folded + hidden + "## Recap")) == []


def test_folded_cells_between_visible_ones_are_no_rest():
    hidden = VISIBLE.replace("x = 1", ":tags: [hide-input]\n\nx = 1")
    found = core(GOOD.replace("## Recap", (VISIBLE + hidden) * 4 + "## Recap"))
    assert [complaint[:34] for _, complaint in found] == ["more than 3 visible cells in a row"]


TOC = "format: jb-book\nroot: book/intro\nparts:\n  - chapters:\n      - file: book/one\n"


@pytest.fixture
def book(tmp_path):
    """Writes a book with one page that goes deeper."""

    def write(header, toc, config="sphinx: {config: {}}\n"):
        (tmp_path / "book/deeper").mkdir(parents=True, exist_ok=True)
        for page in ("intro", "one"):
            (tmp_path / f"book/{page}.md").write_text(HEADER, encoding="utf-8")
        (tmp_path / "book/deeper/more.md").write_text(f"---\n{header}---\n\n# More\n", encoding="utf-8")
        (tmp_path / "_toc.yml").write_text(toc, encoding="utf-8")
        (tmp_path / "_config.yml").write_text(config, encoding="utf-8")
        return tmp_path

    return write


NESTED = TOC + "        sections:\n          - file: book/deeper/more\n"


def test_a_page_that_goes_deeper_has_a_chapter_and_says_what_it_adds(book):
    assert list(going_deeper(book("deeper: More of it.\n", NESTED))) == []
    folder = book("kernelspec: {}\n", NESTED)
    ((path, line, complaint),) = going_deeper(folder)
    assert (path, line) == (folder / "book/deeper/more.md", 1)
    assert "expected a line `deeper:`" in complaint


@pytest.mark.parametrize("toc", [TOC, TOC + "      - file: book/deeper/more\n"])
def test_a_page_that_goes_deeper_without_a_chapter(book, toc):
    folder = book("deeper: More of it.\n", toc)
    message = "the page has no chapter: expected it in _toc.yml, in the sections of a chapter"
    assert list(going_deeper(folder)) == [(folder / "book/deeper/more.md", 1, message)]


@pytest.mark.parametrize(
    ("redirect", "message"),
    [
        ("book/old/one: ../one.html", None),
        ("book/old/one: ../gone.html", "the redirect is dead: expected a page of the book, got book/gone"),
        ("book/one: intro.html", "the redirect hides a page of the book: book/one"),
    ],
)
def test_redirects_lead_somewhere(book, redirect, message):
    config = f"sphinx:\n  config:\n    redirects:\n      {redirect}\n"
    folder = book("deeper: More of it.\n", NESTED, config)
    assert list(redirects(folder)) == ([(folder / "_config.yml", 4, message)] if message else [])


def test_the_cells_are_those_of_the_notebook():
    (cell,) = cells_of(chapter("x = 1\n", ":tags: [a, b]\n\n"))
    assert (cell.line, cell.code_line, cell.tags) == (LINE, LINE + 3, {"a", "b"})
