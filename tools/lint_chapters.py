"""Check the code cells of the chapters with ruff: style and format. With --fix, format them in place.

Messages give the chapter and its own line: a chapter is checked as a Python file of the same length, where what is not
code is blank.
"""

import re
import subprocess
import sys
from pathlib import Path

from chapters import ROOT, chapters

LINE_LENGTH = "76"  # what the page shows without scrolling
# A page is no module: imports come where they are needed, a last expression is shown unless a semicolon follows; and
# zip(axes, names, strict=True) would be plumbing.
IGNORED = "B018,B905,E402,E703,I001"
CELL = re.compile(r"^(?P<fence>`{3,})\{code-cell\}[^\n]*\n(?:---\n.*?^---\n)?(?P<code>.*?)^(?P=fence)$", re.S | re.M)


def ruff(*arguments, code, path):
    """Run ruff on a piece of code as if it stood in the file `path`."""
    program = Path(sys.executable).with_name("ruff")
    command = [program, *arguments, "--line-length", LINE_LENGTH, "--stdin-filename", f"{path}.py", "-"]
    return subprocess.run(command, input=code, capture_output=True, text=True, cwd=ROOT, check=False)


def formatted(code, path):
    """The code as ruff formats it. A trailing semicolon, which keeps a cell from printing its value, stays."""
    result = ruff("format", code=code, path=path)
    if result.returncode:
        raise SystemExit(f"{path}: {result.stderr.strip()}")
    return result.stdout.rstrip() + ";\n" if code.rstrip().endswith(";") else result.stdout


def blanked(text):
    """The chapter with everything but its code replaced by blank lines."""
    code = ["\n"] * text.count("\n")
    for cell in CELL.finditer(text):
        first = text.count("\n", 0, cell.start("code"))
        lines = cell["code"].splitlines(keepends=True)
        code[first : first + len(lines)] = lines
    return "".join(code)


def lint(path, fix):
    """Check one chapter and print what is wrong; return how many complaints there were."""
    name, text = path.relative_to(ROOT), path.read_text(encoding="utf-8")
    complaints = 0
    for cell in reversed(list(CELL.finditer(text))):
        wanted = formatted(cell["code"], name)
        if wanted == cell["code"]:
            continue
        if fix:
            text = text[: cell.start("code")] + wanted + text[cell.end("code") :]
        else:
            complaints += 1
            print(f"{name}:{text.count(chr(10), 0, cell.start()) + 1}: the cell is not formatted; run make format")
    if fix:
        path.write_text(text, encoding="utf-8")
    check = ruff("check", "--output-format", "concise", "--extend-ignore", IGNORED, code=blanked(text), path=name)
    if check.returncode:
        complaints += 1
        print(check.stdout.replace(f"{name}.py:", f"{name}:") + check.stderr, end="")
    return complaints


if __name__ == "__main__":
    total = sum(lint(chapter.path, fix="--fix" in sys.argv[1:]) for chapter in chapters())
    if total:
        raise SystemExit(1)
    print("chapters: all cells formatted and clean")
