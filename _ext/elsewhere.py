"""Links from docstrings to the documentation of other packages, without the network at build time.

Intersphinx reads a package's inventory, which it would download. Here it finds one of just the names that are used.
"""

import zlib
from pathlib import Path

MODULE = "{name}.html#{name}"
ELSEWHERE = {  # package: address of its documentation, and where in it names are
    "python": (
        "https://docs.python.org/3/",
        {
            "library/exceptions.html#{name}": "exception TypeError ValueError RuntimeError",
            "library/json.html#{name}": "function json.load",
        },
    ),
    "torch": (
        "https://docs.pytorch.org/docs/stable/",
        {
            "generated/" + MODULE: "class torch.nn.Embedding torch.nn.MSELoss torch.optim.SGD",
            "generated/{name}.html": "function torch.tanh torch.vmap",
            "tensors.html#torch.Tensor": "class Tensor",
        },
    ),
    "scipy": (
        "https://docs.scipy.org/doc/scipy/reference/",
        {"generated/" + MODULE: "function scipy.sparse.linalg.eigsh"},
    ),
    "joblib": (
        "https://joblib.readthedocs.io/en/stable/",
        {"generated/" + MODULE: "class joblib.Memory joblib.Parallel"},
    ),
    "nbformat": ("https://nbformat.readthedocs.io/en/latest/", {"api.html#{name}": "function nbformat.read"}),
}


def inventory(package, places):
    """A package's inventory, in Sphinx's format."""
    lines = ""
    for place, text in places.items():
        kind, *names = text.split()
        lines += "".join(f"{name} py:{kind} 1 {place.format(name=name)} -\n" for name in names)
    head = f"# Sphinx inventory version 2\n# Project: {package}\n# Version: \n# Compressed with zlib.\n"
    return head.encode() + zlib.compress(lines.encode())


def _write(app, config):
    folder = Path(app.doctreedir) / "inventories"
    folder.mkdir(parents=True, exist_ok=True)
    for package, (address, places) in ELSEWHERE.items():
        (folder / f"{package}.inv").write_bytes(inventory(package, places))
        config.intersphinx_mapping[package] = (address, str(folder / f"{package}.inv"))


def setup(app):
    app.setup_extension("sphinx.ext.intersphinx")
    app.connect("config-inited", _write, priority=400)  # before intersphinx checks what it was given
    return {"parallel_read_safe": True}
