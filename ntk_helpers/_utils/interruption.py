"""Ctrl-C as a request to stop between two steps."""

import signal
import threading
from contextlib import contextmanager


@contextmanager
def interruption():
    """An event that Ctrl-C sets, for the loop to stop where it likes; a second Ctrl-C raises KeyboardInterrupt."""
    asked = threading.Event()

    def ask(*_):
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with _handled_by(ask):
        yield asked


@contextmanager
def uninterrupted():
    """Ctrl-C raises KeyboardInterrupt within `interruption` too, so that no partial result passes for a whole one."""
    with _handled_by(lambda *arguments: signal.default_int_handler(*arguments)):
        yield


@contextmanager
def _handled_by(handler):
    """Put a handler of Ctrl-C in the place of Python's own, in the main thread, and of no other."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    replace = in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if replace:
        signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        if replace:
            signal.signal(signal.SIGINT, signal.default_int_handler)
