"""The rules of a core page, in numbers: how much there is on it, in which order, and how it ends."""

import re
from statistics import median

CORE = ("start", "idea", "kernel", "circle", "beyond", "models")  # folders of book/
# Pages of the first edition that have not been rewritten. This list only ever shrinks.
TO_BE_REWRITTEN = {
    *("idea/krr_vs_network", "idea/linearization", "idea/kernel_descent"),
    *("kernel/kernel_gradient", "kernel/empirical_vs_analytic", "kernel/ntk_drift", "kernel/convergence"),
    *("circle/circle_profiles", "circle/function_space", "circle/spectral_bias", "circle/fourier_features"),
    *("beyond/lazy_vs_feature", "beyond/finite_width", "beyond/small_data", "models/your_own_model"),
}
MOST_WORDS, MOST_CELLS, MOST_LINES, LONGEST_RUN, MOST_NUMBERS, MOST_RECAP = 2000, 20, 6, 3, 2, 5
LADDER = {"Check": 3, "Pencil": 2, "Experiment": 1, "Open": 1}  # titles of exercises begin so; at least so many
HEADER = re.compile(r"\A---\n.*?^---\n", re.S | re.M)
END = re.compile(r"^## (?:Recap|Exercises)", re.M)  # of what is counted
FOLDED = re.compile(
    r"^(?P<fence>[`:]{3,})\{(?:dropdown\}|[^}\n]*\}[^\n]*\n:class:[^\n]*dropdown).*?^(?P=fence)$", re.S | re.M
)
MARKUP = re.compile(r"^[`:]{3,}[^\n]*$|^:[\w-]+:[^\n]*$", re.M)
MATH_AND_ROLES = re.compile(r"\$\$.*?\$\$|\$[^$]*?\$|\{[\w:-]+\}`[^`]*`", re.S)
WORD = re.compile(r"[A-Za-z]{2,}")
PICTURE = re.compile(r"^!\[|^[`:]{3,}\{(?:figure|image|live)\}", re.M)
EXERCISE = re.compile(r"^[`:]{3,}\{exercise\} (?P<step>\w+)", re.M)


def complaints(path, text, cells):
    """What is wrong with a core page, by the rules that can be counted: pairs of a line and a text."""
    if path.parent.name not in CORE or f"{path.parent.name}/{path.stem}" in TO_BE_REWRITTEN:
        return
    end = match.start() if (match := END.search(text)) else len(text)
    before = [cell for cell in cells if cell.match.start() < end]
    visible = [cell for cell in before if not cell.folded]
    lines = [sum(bool(line.strip()) for line in cell.match["code"].splitlines()) for cell in visible]
    yield from _at_most(1, "words", _words(text[:end], before), MOST_WORDS)
    yield from _at_most(1, "visible cells", len(visible), MOST_CELLS)
    yield from _at_most(1, "lines in the median visible cell", median(lines or [0]), MOST_LINES)
    yield from _runs(text, before, visible)
    yield from _at_most(1, "numbers in the opening", _opening(text).count("{glue:"), MOST_NUMBERS)
    yield from _picture(text[:end], before)
    yield from _ending(text)


def _at_most(line, what, count, most):
    if count > most:
        yield line, f"{count:g} {what}: expected at most {most}"


def _prose(text, cells):
    """A text without its header, cells, folded parts, mathematics, roles and options."""
    for cell in reversed(cells):
        text = text[: cell.match.start()] + text[cell.match.end() :]
    for pattern in (HEADER, FOLDED, MARKUP, MATH_AND_ROLES):
        text = pattern.sub(" ", text)
    return text


def _words(text, cells):
    return len(WORD.findall(_prose(text, cells)))


def _runs(text, cells, visible):
    """Runs of visible cells without a sentence between them; folded ones in between are no rest."""
    run, position = 0, 0
    for cell in cells:
        if WORD.search(text[position : cell.match.start()]):
            run = 0
        run, position = run + (cell in visible), cell.match.end()
        if cell in visible and run == LONGEST_RUN + 1:
            yield cell.line, f"more than {LONGEST_RUN} visible cells in a row: expected a sentence between them"


def _opening(text):
    """The first paragraph."""
    paragraphs = HEADER.sub("", text).split("\n\n")
    return next((p for p in paragraphs if p.strip() and not p.lstrip().startswith("#")), "")


def _picture(text, cells):
    places = [cell.match.start() for cell in cells if "drawing" in cell.tags]
    places += [match.start() for match in PICTURE.finditer(text)]
    first = min(places, default=len(text))
    before = [cell for cell in cells if cell.match.start() < first]
    if _words(text[:first], before) > _words(text, cells) / 3:
        yield 1, "the first picture comes late: expected it within the first third of the words"


def _ending(text):
    """Recap, ladder of exercises, and limits."""
    recap = re.search(r"^## Recap\n(?P<body>.*?)(?=^## |\Z)", text, re.S | re.M)
    if not recap:
        yield 1, f"no recap: expected a section Recap of at most {MOST_RECAP} lines"
    else:
        line = text.count("\n", 0, recap.start()) + 1
        yield from _at_most(line, "lines in the recap", len(re.findall(r"^[-*\d]", recap["body"], re.M)), MOST_RECAP)
    steps = [match["step"] for match in EXERCISE.finditer(text)]
    for step, least in LADDER.items():
        if steps.count(step) < least:
            yield 1, f"{steps.count(step)} exercises titled {step}: expected at least {least}"
    if not re.search(r"^## What this does not show$", text, re.M):
        yield 1, "expected a section: What this does not show"
