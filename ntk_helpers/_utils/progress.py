"""A progress bar for whoever is watching."""

import multiprocessing
import sys

from tqdm import tqdm


def progress_bar(total, unit, done=0):
    """A bar of tqdm, in text; silent unless in a terminal or notebook, in worker processes, and for the first second.

    ``TQDM_DISABLE=1`` in the environment silences it everywhere.
    """
    ipython = sys.modules.get("IPython")  # which a notebook has loaded, and we need not
    in_notebook = ipython is not None and "IPKernelApp" in getattr(ipython.get_ipython(), "config", ())
    watched = getattr(sys.stderr, "isatty", bool)() or in_notebook
    silent = not watched or multiprocessing.parent_process() is not None
    return tqdm(total=total, initial=done, unit=unit, leave=False, delay=1, **({"disable": True} if silent else {}))
