"""Pass: what is known of a pass of a rotated model while it runs, and InThread, the passes that a thread is in."""

from __future__ import annotations

import threading
from typing import NamedTuple

from torch import Tensor

from road_interp.models.row_maps import RowMaps
from road_interp.models.token_selection import Selection


class Pass(NamedTuple):
    """A pass of the model.

    Attributes:
        selection: the tokens that it rotates; None if it is not known yet.
        shape: rows and tokens of its inputs.
        depth: how many models the thread is inside.
        maps: those that it applies; None if it is not known yet.
        trains: whether gradients were enabled when it began.
    """

    selection: Selection | None = None
    shape: tuple[int, int] | None = None
    depth: int = 0
    maps: RowMaps | None = None
    trains: bool = False


class InThread(threading.local):
    """What a thread does.

    Attributes:
        current: its pass; after it, the one in which it was called.
        outer: those in which the current one was called, as by a hook.
        generates: whether it is inside `generate` of the attached model.
        prompt: attention mask of the prompts of that `generate`.
    """

    current = Pass()
    outer: tuple[Pass, ...] = ()
    generates = False
    prompt: Tensor | None = None
