"""The functions that called this code: what torch and transformers run it for, where they tell it in no other way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import CodeType, FrameType


def callers() -> Iterator[FrameType]:
    """The frames around the caller's, the innermost first."""
    frame = sys._getframe().f_back
    while frame is not None:
        yield frame
        frame = frame.f_back


def runs_inside(code: CodeType) -> bool:
    """Whether a function with this code runs the caller's."""
    return any(frame.f_code is code for frame in callers())
