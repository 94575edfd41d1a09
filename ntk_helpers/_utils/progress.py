"""A progress bar for whoever is watching."""

import multiprocessing
import sys

from IPython import get_ipython
from tqdm import tqdm


def progress_bar(total, unit, done=0):
    """A bar of tqdm, in text; silent unless in a terminal or notebook, in worker processes, and for the first second.

    ``TQDM_DISABLE=1`` in the environment silences it everywhere.
    """
    watched = getattr(sys.stderr, "isatty", bool)() or "IPKernelApp" in getattr(get_ipython(), "config", ())
    silent = not watched or multiprocessing.parent_process() is not None
    return tqdm(total=total, initial=done, unit=unit, leave=False, delay=1, **({"disable": True} if silent else {}))
