"""The functions that called this code, or that other threads run: what torch and transformers tell in no other way."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator
from types import CodeType, FrameType

from torch import nn
from transformers import GenerationMixin

GENERATE: CodeType = inspect.unwrap(GenerationMixin.generate).__code__
CALL: CodeType = nn.Module._call_impl.__code__


def callers(frame: FrameType | None = None) -> Iterator[FrameType]:
    """The frames around the caller's, the innermost first; or a frame and those around it."""
    frame = sys._getframe().f_back if frame is None else frame
    while frame is not None:
        yield frame
        frame = frame.f_back


def runs_inside(code: CodeType) -> bool:
    """Whether a function with this code runs the caller's."""
    return any(frame.f_code is code for frame in callers())


def calls_of_other_threads() -> Iterator[tuple[str, nn.Module]]:
    """Every call of a module, and every `generate`, that another thread runs: the thread's name, and the module."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            for each in callers(frame):
                if each.f_code in (CALL, GENERATE):
                    yield names.get(ident, "another thread"), each.f_locals["self"]
