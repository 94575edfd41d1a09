"""Write out the macros of a book, as MathJax is told of them, in a piece of TeX."""

import re

NAME = re.compile(r"\\([A-Za-z]+)")
MOST = 100  # replacements in one place, before it must be one that contains itself


def expand(tex, macros):
    """TeX without the macros: a name and its body, or a list of its body and its number of arguments."""
    position = count = 0
    while match := NAME.search(tex, position):
        if match[1] not in macros:
            position, count = match.end(), 0
            continue
        if (count := count + 1) > MOST:
            raise ValueError(f"macros: expected bodies that end, got \\{match[1]}, which contains itself")
        body, arity = macros[match[1]] if isinstance(macros[match[1]], list) else (macros[match[1]], 0)
        end, given = match.end(), []
        for _ in range(arity):
            argument, end = read_argument(tex, end)
            given.append(argument)
        body = re.sub(r"#(\d)", lambda m, given=given: given[int(m[1]) - 1], body)
        gap = " " if re.search(r"\\[A-Za-z]+$", body) and tex[end : end + 1].isalpha() else ""
        tex, position = tex[: match.start()] + body + gap + tex[end:], match.start()
    return tex


def read_argument(tex, position):
    """The argument of a macro that begins at a position, a group in braces or one token, and where it ends."""
    match = re.compile(r"\s*(\\[A-Za-z]+|\\.|[^\s])").match(tex, position)
    if match is None:
        raise ValueError(f"macros: expected an argument, got the end of {tex!r}")
    if match[1] != "{":
        return match[1], match.end()
    depth, end = 1, match.end()
    while depth:
        step = re.compile(r"\\.|[{}]|[^\\{}]+", re.S).match(tex, end)
        if step is None:
            raise ValueError(f"macros: expected a closing brace, got the end of {tex!r}")
        depth, end = depth + {"{": 1, "}": -1}.get(step[0], 0), step.end()
    return tex[match.end() : end - 1], end
