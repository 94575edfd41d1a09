import subprocess

import pytest
from repository import find_repository


@pytest.fixture
def checkout(tmp_path):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    return tmp_path


def add_remote(folder, address):
    subprocess.run(["git", "-C", str(folder), "remote", "add", "origin", address], check=True)


def test_unknown(checkout, tmp_path_factory):
    assert find_repository(checkout, {}) is None
    assert find_repository(tmp_path_factory.mktemp("no-checkout"), {}) is None


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://github.com/owner/name.git", "owner/name"),
        ("https://github.com/owner/name", "owner/name"),
        ("git@github.com:owner/name.git", "owner/name"),
        ("ssh://git@github.com/owner/na.me.git", "owner/na.me"),
        ("https://example.org/owner/name.git", None),
        ("https://example.org/github.com/owner/name", None),
        ("/some/folder", None),
    ],
)
def test_remote(checkout, address, expected):
    add_remote(checkout, address)
    assert find_repository(checkout, {}) == expected


def test_order(checkout):
    add_remote(checkout, "git@github.com:third/name")
    actions = {"GITHUB_REPOSITORY": "second/name"}
    assert find_repository(checkout, actions) == "second/name"
    assert find_repository(checkout, actions | {"BOOK_REPOSITORY": "first/name"}) == "first/name"
    assert find_repository(checkout, {"BOOK_REPOSITORY": ""}) == "third/name"
