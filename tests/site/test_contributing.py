"""The ten lines of CONTRIBUTING.md that add a chapter, on a copy of the project."""

import os
import re
import shutil
import subprocess

from chapters import ROOT, pages

LINES = re.compile(r"## A chapter in ten lines\n\n```sh\n(.*?)^```$\n\n", re.M | re.S)
LEFT_OUT = (
    ".venv",
    ".git",
    ".hypothesis",
    "mutants",
    "html",
    "colab",
    "notebooks",
    "screenshots",
    ".doctrees",
    "__pycache__",
)


def test_a_chapter_in_ten_lines(site, tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (script,) = LINES.findall(text)
    assert len(script.splitlines()) == 10
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    (copy / ".venv").mkdir()  # of links, so that nothing done to it reaches the project's own
    for entry in (ROOT / ".venv").iterdir():
        (copy / ".venv" / entry.name).symlink_to(entry)
    (copy / ".venv/.ready").unlink(missing_ok=True)
    (copy / ".venv/.ready").touch()  # newer than what it is made of
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    subprocess.run(["bash", "-e", "-c", script], cwd=copy, env=environment, check=True)
    page = (copy / "_build/html/book/notes/sum.html").read_text(encoding="utf-8")
    number = sum(chapter.number is not None for chapter in pages()) + 1
    assert f"<h1>{number}. What is one and one?" in re.sub("</?span[^>]*>", "", page)
    assert ">2\n</pre>" in page
    assert (copy / "_build/html/notebooks/notes/sum.ipynb").exists()
