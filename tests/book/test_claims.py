import json

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from ntk_helpers.book.claims import KINDS, ClaimError, claim, glue, recorded_claims


@pytest.fixture
def shown(monkeypatch):
    """What was displayed: (data, metadata) pairs."""
    displays = []
    monkeypatch.setattr(
        "ntk_helpers.book.claims.display", lambda data, metadata, raw: displays.append((data, metadata))
    )
    return displays


def notebook_of(displays):
    outputs = [{"output_type": "display_data", "data": data, "metadata": metadata} for data, metadata in displays]
    return json.loads(json.dumps({"cells": [{"cell_type": "markdown"}, {"cell_type": "code", "outputs": outputs}]}))


def test_a_claim_shows_one_line_and_leaves_a_record(shown):
    claim("slope", "It falls.", torch.tensor(-0.52), (-0.7, -0.3), kind="law", source="Lee & Co", interval=(-0.6, -0.4))
    data, _ = shown[0]
    line = "Claim holds (law): It falls. Measured −0.520 [−0.6, −0.4], expected −0.7 to −0.3 (Lee & Co)."
    assert data["text/plain"] == line
    assert "Lee &amp; Co" in data["text/html"]
    assert 'id="claim-slope"' in data["text/html"]
    assert f'<span class="claim-kind" title="{KINDS["law"]}">law</span> It falls.' in data["text/html"]
    assert recorded_claims(notebook_of(shown)) == [
        {
            "name": "slope",
            "statement": "It falls.",
            "measured": pytest.approx(-0.52),
            "interval": [-0.6, -0.4],
            "expected": "−0.7 to −0.3",
            "kind": "law",
            "source": "Lee & Co",
            "holds": True,
        }
    ]


def test_a_claim_glues_what_it_measured(shown):
    claim("slope", "It falls.", -0.5, -0.5, tolerance=0.1, kind="law", source="theory", interval=(-0.6, -0.4))
    glued = {metadata["scrapbook"]["name"] for _, metadata in shown if "scrapbook" in metadata}
    assert glued == {"slope", "slope_low", "slope_high"}


@pytest.mark.parametrize(
    ("measured", "expected", "options"),
    [
        (0.51, 0.4, {"tolerance": 0.1}),
        (float("nan"), (0, 1), {}),
        (float("inf"), (0.1, float("inf")), {}),
        (-1e-9, (0, 1), {}),
    ],
)
def test_a_claim_that_does_not_hold_raises_and_is_recorded(shown, measured, expected, options):
    with pytest.raises(ClaimError, match=r"Claim 'slope' does not hold \(threshold\): It falls. Measured"):
        claim("slope", "It falls.", measured, expected, kind="threshold", source="theory", **options)
    assert not recorded_claims(notebook_of(shown))[0]["holds"]


@pytest.mark.parametrize(
    ("expected", "described"),
    [((0.1, float("inf")), "at least 0.1"), ((-float("inf"), -0.35), "at most −0.35"), ((0, 1), "0 to 1")],
)
def test_ranges(shown, expected, described):
    claim("x", "X.", (max(expected[0], -1) + min(expected[1], 1)) / 2, expected, kind="law", source="theory")
    assert recorded_claims(notebook_of(shown))[0]["expected"] == described


def test_a_name_is_an_address():
    with pytest.raises(ValueError, match=r"name: expected letters, digits, _, . and - alone, got 'at π'"):
        claim("at π", "X.", 0.5, (0, 1), kind="law", source="theory")


INF, NAN = float("inf"), float("nan")
THEORY = {"kind": "law", "source": "theory"}
REFUSED = [
    (0.5, {}, "tolerance: expected a finite number, as expected=0.5 is a value, got None"),
    (0.5, {"tolerance": INF}, "tolerance: expected a finite number"),
    (0.5, {"tolerance": NAN}, "tolerance: expected a finite number"),
    (0.5, {"tolerance": -0.1}, "tolerance: expected a finite number"),
    (NAN, {"tolerance": 0.1}, "expected: expected a range"),
    ((0, 1), {"tolerance": 0.1}, "tolerance: expected None"),
    ((1, 0), {}, "expected: expected a range"),
    ((0, NAN), {}, "expected: expected a range"),
    ((0, INF), {}, r"expected: expected a range that a value could miss, got \(0, inf\)"),
    ((-INF, INF), {}, "expected: expected a range that a value could miss"),
    ((0, 1), {"interval": (1, 0)}, "interval: expected a range"),
    ((0, 1), {"interval": (0, NAN)}, "interval: expected a range"),
    ((0, 1), {"kind": "guess"}, "kind: expected one of identity, theorem, law, reproduction, threshold, got 'guess'"),
    ((0, 1), {"source": "because " * 16}, "source: expected at most 15 words, got 16"),
]


@pytest.mark.parametrize(("expected", "options", "message"), REFUSED)
def test_refusals(shown, expected, options, message):
    with pytest.raises(ValueError, match=message):
        claim("x", "X.", 0.5, expected, **THEORY | options)
    assert not shown


def test_a_claim_has_a_kind():
    with pytest.raises(TypeError, match="kind"):
        claim("x", "X.", 0.5, (0, 1), source="theory")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (0.25, "0.25"),
        (torch.tensor(0.25), "0.25"),
        (torch.tensor(1e-7, dtype=torch.float64), "1e-07"),
        ("a", "'a'"),
    ],
)
def test_glue_emits_what_myst_nb_reads(shown, value, text):
    glue("name", value)
    data, metadata = shown[0]
    assert metadata == {"scrapbook": {"name": "name", "mime_prefix": "application/papermill.record/"}}
    assert data == {"application/papermill.record/text/plain": text}


def test_in_a_real_kernel_without_sphinx():
    source = "\n".join(
        [
            "import sys",
            "from ntk_helpers.book.claims import claim, glue",
            'claim("two", "One and one.", 1 + 1, 2, tolerance=0, kind="identity", source="arithmetic")',
            'assert not any(name.split(".")[0] in ("sphinx", "myst_nb") for name in sys.modules)',
        ]
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    executed = NotebookClient(notebook).execute()
    assert [record["name"] for record in recorded_claims(executed)] == ["two"]
