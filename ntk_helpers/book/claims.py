"""Statements that a chapter checks, and numbers that its prose quotes.

Both leave their record in the outputs of the notebook, so that it is there also when the outputs come from a cache.
Nothing here needs Sphinx: in Colab a claim shows as one line, and a glued number shows nothing.
"""

import html
import math
import re
from collections.abc import Mapping
from typing import Any, SupportsFloat

from IPython.display import display

CLAIM_KEY = "claim"  # in the metadata of the output that shows it
KINDS = {
    "identity": "true by algebra, up to rounding",
    "theorem": "a bound or limit from a paper, or from a proof in this book",
    "law": "a measured exponent or ratio against a predicted one",
    "reproduction": "a number or figure of a paper or report, measured again",
    "threshold": "a judgement of ours, said to be one",
}
MOST_WORDS = 15  # of a source: what is longer is an argument, and stands in the text


class ClaimError(AssertionError):
    """A claim that does not hold, or whose measured value is not a finite number."""


def glue(name: str, value: str | SupportsFloat) -> None:
    """Keep a value under a name, for the prose to insert: in MyST, ``{glue:text}`name:.2f```.

    The value is a str, an int, or what converts to a float (a tensor of one element, say). The output that this emits
    is the one that MyST-NB reads; a plain notebook shows nothing.
    """
    value = value if isinstance(value, str | int) else float(value)
    prefix = "application/papermill.record/"
    display(
        {prefix + "text/plain": repr(value)},
        metadata={"scrapbook": {"name": name, "mime_prefix": prefix}},
        raw=True,
    )


def claim(
    name: str,
    statement: str,
    measured: SupportsFloat,
    expected: float | tuple[float, float],
    *,
    kind: str,
    source: str,
    tolerance: float | None = None,
    interval: tuple[SupportsFloat, SupportsFloat] | None = None,
) -> None:
    """State a quantitative claim, show it as one line, record it, and stop the chapter where it does not hold.

    Parameters
    ----------
    name : str
        Also the name under which the measured value is glued, and its address in the page: letters, digits, _, . and -.
    statement : str
        One sentence.
    measured : float
    expected : float or (float, float)
        A value, with its `tolerance`, or a closed range; one end may be infinite, but "at least 0" says nothing.
    kind : str
        One of `KINDS`: "identity", "theorem", "law", "reproduction" or "threshold".
    source : str
        The paper and equation where the expectation comes from, or one reason: at most 15 words.
    tolerance : float, optional
        Absolute and finite; given exactly where `expected` is a value.
    interval : (float, float), optional
        Confidence interval of the measured value, for the record; glued as ``name_low`` and ``name_high``.

    Raises
    ------
    ClaimError
        Where the measured value is outside the range or not finite. The line is shown first.
    ValueError
        For a name with other characters, an unknown kind, a source that is too long, a range that is reversed or says
        nothing, a tolerance that is missing or too many, an interval that is none.
    """
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise ValueError(f"name: expected letters, digits, _, . and - alone, got {name!r}")
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if (words := len(source.split())) > MOST_WORDS:
        raise ValueError(f"source: expected at most {MOST_WORDS} words, got {words}: {source!r}")
    measured = float(measured)
    low, high = _range(expected, tolerance)
    record = {
        "name": name,
        "statement": statement,
        "measured": measured,
        "interval": None if interval is None else list(_ends("interval", interval)),
        "expected": _describe(expected, tolerance),
        "kind": kind,
        "source": source,
        "holds": math.isfinite(measured) and low <= measured <= high,
    }
    display({"text/plain": _line(record), "text/html": _html_line(record)}, metadata={CLAIM_KEY: record}, raw=True)
    if not record["holds"]:
        raise ClaimError(_line(record))
    glue(name, measured)
    if interval is not None:
        glue(f"{name}_low", interval[0])
        glue(f"{name}_high", interval[1])


def recorded_claims(notebook: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Claims recorded in an executed notebook, in order: dicts with the keys of `claim`, and whether it ``holds``.

    Parameters
    ----------
    notebook : mapping
        In nbformat 4, as `nbformat.read` or `json.load` give it.
    """
    outputs = (output for cell in notebook["cells"] for output in cell.get("outputs", []))
    return [output["metadata"][CLAIM_KEY] for output in outputs if CLAIM_KEY in output.get("metadata", {})]


def measured_text(record: Mapping[str, Any]) -> str:
    """The measured value of a recorded claim as its line has it, to three digits, with the interval if there is one."""
    interval = record["interval"]
    ends = f" [{_number(interval[0])}, {_number(interval[1])}]" if interval else ""
    return f"{_number(record['measured'], '#.3g').rstrip('.')}{ends}"


def _range(expected, tolerance):
    if not isinstance(expected, tuple | list):
        if tolerance is None or not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance: expected a finite number, as expected={expected} is a value, got {tolerance}")
        return _ends("expected", (expected - tolerance, expected + tolerance))
    if tolerance is not None:
        raise ValueError(f"tolerance: expected None, as expected={expected} is a range, got {tolerance}")
    low, high = _ends("expected", expected)
    if high == math.inf and low in (-math.inf, 0):
        raise ValueError(f"expected: expected a range that a value could miss, got {expected}")
    return low, high


def _ends(name, pair):
    low, high = map(float, pair)
    if not low <= high:
        raise ValueError(f"{name}: expected a range (low, high), got {pair}")
    return low, high


def _describe(expected, tolerance):
    if tolerance is not None:
        return f"{_number(expected)} ± {_number(tolerance)}"
    low, high = map(float, expected)
    if low == -math.inf:
        return f"at most {_number(high)}"
    if high == math.inf:
        return f"at least {_number(low)}"
    return f"{_number(low)} to {_number(high)}"


def _number(value, spec=".3g"):
    return f"{value:{spec}}".replace("-", "\N{MINUS SIGN}")


def _line(record):
    verdict = "Claim holds" if record["holds"] else f"Claim {record['name']!r} does not hold"
    return (
        f"{verdict} ({record['kind']}): {record['statement']} Measured {measured_text(record)}, "
        f"expected {record['expected']} ({record['source']})."
    )


def _html_line(record):
    mark = "✓" if record["holds"] else "✗"
    text = {key: html.escape(str(record[key])) for key in ("name", "statement", "expected", "kind", "source")}
    return (
        f'<p class="claim" id="claim-{text["name"]}"><strong>{mark} Claim</strong> '
        f'<span class="claim-kind" title="{KINDS[record["kind"]]}">{text["kind"]}</span> {text["statement"]} '
        f"<strong>Measured {html.escape(measured_text(record))}</strong>, expected {text['expected']} "
        f"<em>({text['source']})</em>.</p>"
    )
