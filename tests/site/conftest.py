"""The built site in Chromium; what these tests need and do not find is said in the reason why they were skipped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from chapters import ROOT
from inspect_site import NO_CHROMIUM, SITE, find_chromium, html_pages, opened, patient, served

NO_SITE = "the site has not been built: run make book"


def pytest_generate_tests(metafunc):
    if "page" in metafunc.fixturenames:
        missing = pytest.param(None, marks=pytest.mark.skip(reason=NO_SITE))
        metafunc.parametrize("page", html_pages() or [missing])


@pytest.fixture(scope="session")
def site():
    if not (SITE / "index.html").exists():
        pytest.skip(NO_SITE)
    return SITE


@pytest.fixture(scope="session")
def address(site):
    with served(site) as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    if find_chromium() is None:
        pytest.skip(NO_CHROMIUM)
    with opened() as browser:
        yield browser


@pytest.fixture
def tab(browser):
    with browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light") as context:
        yield patient(context.new_page())


@pytest.fixture(scope="session")
def published(site, tmp_path_factory):
    """The site as it is where the address of the repository is known: the same book, of the same outputs."""
    folder = tmp_path_factory.mktemp("published")
    program = Path(sys.executable).with_name("jupyter-book")
    subprocess.run(
        [program, "build", ROOT, "-q", "-W", "-n", "--keep-going", "--all", "--path-output", folder],
        env=os.environ | {"BOOK_REPOSITORY": "owner/name", "BOOK_ADDRESS": ""},
        check=True,
    )
    return folder / "_build" / "html"
