from pathlib import Path

from about_build import TABLES

PACKAGE = Path(__file__).parents[2] / "ntk_helpers"


def test_mutants():
    """Of modules that exist, and at least nine of ten killed."""
    head, *modules, (_, mutants, killed) = TABLES["mutants"](None)
    assert head == ["module", "changed places", "noticed by a test"]
    assert all((PACKAGE / f"{name}.py").exists() for name, *_ in modules)
    assert sum(int(count) for _, count, _ in modules) == int(mutants)
    assert sum(int(count) for *_, count in modules) == int(killed.split()[0]) >= 0.9 * int(mutants)
