"""Act before one of the calls with which a piece of code changes the disk."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# These change nothing, or close what is open.
QUIET = ("fspath", "stat", "lstat", "fstat", "scandir", "listdir", "is_dir", "close", "__exit__")


@contextmanager
def acting_at(number: int, act: Callable[[], object]) -> Iterator[list[str]]:
    """Give the names of the calls as they are made, and act before the one of this number, from 0.

    A call is one of a function written in C that belongs to `os` or to a file: the test knows no
    name of ours, and no call of ours can be forgotten. If the action raises, so does the call.
    """
    calls: list[str] = []

    def profile(frame: FrameType, event: str, called: Any) -> None:
        owner = getattr(called, "__self__", None)
        module = getattr(owner, "__name__", type(owner).__module__)
        if event == "c_call" and module in ("posix", "_io", "io") and called.__name__ not in QUIET:
            calls.append(called.__name__)
            if len(calls) == number + 1:
                act()

    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(None)
