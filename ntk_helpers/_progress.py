"""A progress bar for whoever is watching."""

import multiprocessing
import sys

from IPython import get_ipython
from tqdm.auto import tqdm


def progress_bar(total, unit, done=0):
    """A bar of tqdm that leaves nothing behind; silent unless in a terminal or notebook, and in worker processes.

    ``TQDM_DISABLE=1`` in the environment silences it everywhere.
    """
    watched = sys.stderr.isatty() or "IPKernelApp" in getattr(get_ipython(), "config", ())
    silent = not watched or multiprocessing.parent_process() is not None
    return tqdm(total=total, initial=done, unit=unit, leave=False, delay=1, **({"disable": True} if silent else {}))
