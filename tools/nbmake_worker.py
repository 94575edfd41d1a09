"""A plugin of pytest, beside nbmake: while a notebook runs, a file tells at which cell; after it, what went wrong."""

from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
from nbclient import NotebookClient
from nbmake.pytest_items import NotebookFailedException

LIMIT = 3600  # seconds for a cell: far more than any needs on a slow machine, and an end to one that hangs


def cell_file(notebook):
    """The file that holds the number of a notebook's present cell, outside the folder that the notebook sees."""
    return Path(notebook).parent.with_suffix(".cell")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    def tell(cell, cell_index):
        cell_file(item.path).write_text(str(cell_index))

    # nbmake has no option for these: a busy machine takes its time to start a kernel, and to hand over what it says.
    client = partial(NotebookClient, on_cell_execute=tell, startup_timeout=LIMIT, iopub_timeout=LIMIT)
    with patch("nbmake.nb_run.NotebookClient", client):
        try:
            return (yield)
        except Exception as error:
            item.user_properties.append(("trouble", trouble(error)))
            raise


def trouble(error):
    """What ended a notebook: the error of its cell, as Python says it, or what befell its kernel."""
    if not isinstance(error, NotebookFailedException):
        return str(error)
    result = error.args[0]
    outputs = result.nb.cells[result.error.failing_cell_index].get("outputs", [])
    errors = [f"{out.ename}: {out.evalue}" for out in outputs if out.output_type == "error"]
    return " ".join(errors) or result.error.summary
