import lint_chapters
import pytest
from test_book import HEADER

CELL = "```{code-cell} ipython3\n---\nmystnb:\n  image:\n    alt: x = {1,2}\n---\nCODE```\n"


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    monkeypatch.setattr(lint_chapters, "ROOT", tmp_path)

    def write(code):
        path = tmp_path / "chapter.md"
        path.write_text(HEADER + "\n" + CELL.replace("CODE", code) + "\nWords.\n", encoding="utf-8")
        return path

    return write


LINE = HEADER.count("\n") + 2


def test_a_clean_cell(chapter):
    assert lint_chapters.lint(chapter("x = {1, 2}\nx;\n"), fix=False) == 0


def test_a_cell_that_is_not_formatted(chapter, capsys):
    path = chapter("x = {1,2}\n")
    assert lint_chapters.lint(path, fix=False) == 1
    assert f"chapter.md:{LINE}: the cell is not formatted" in capsys.readouterr().out
    assert lint_chapters.lint(path, fix=True) == 0
    assert path.read_text() == chapter("x = {1, 2}\n").read_text()


def test_a_mistake_is_named_with_its_line(chapter, capsys):
    assert lint_chapters.lint(chapter("x = 1\ny = undefined\n"), fix=False) == 1
    assert f"chapter.md:{LINE + 7}:5: F821" in capsys.readouterr().out
