import pytest
from glued_numbers import typeset


@pytest.mark.parametrize(
    ("python", "print_"),
    [
        ("-0.96", "−0.96"),
        ("2e-14", "2·10⁻¹⁴"),
        ("1e-12", "10⁻¹²"),
        ("6.1e+12", "6.1·10¹²"),
        ("-3e-05", "−3·10⁻⁵"),
        ("−3e−05 [1e−06, 2e+03]", "−3·10⁻⁵ [10⁻⁶, 2·10³]"),
        ("-1e+00", "−10⁰"),
        ("16,384", "16,384"),
        ("12%", "12%"),
        ("[-0.5, -0.4]", "[−0.5, −0.4]"),
        ("ntk_helpers-0.1.0, 2026-11-22", "ntk_helpers-0.1.0, 2026-11-22"),
        ("inf", "inf"),
    ],
)
def test_numbers_as_a_printer_sets_them(python, print_):
    assert typeset(python) == print_
