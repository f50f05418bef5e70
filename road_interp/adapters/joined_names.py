"""Several names in one text: "a+b" for tasks, variables or adapters, "__base__" for none."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from road_interp.errors import InputError

BASE = "__base__"  # PEFT's name for "no adapter"


def split_names(text: str) -> tuple[str, ...]:
    """The names in a text such as "german+instruct"; none in "__base__"."""
    return () if text == BASE else tuple(text.split("+"))


def join_names(names: Iterable[str]) -> str:
    """The text that `split_names` divides into these names."""
    return "+".join(names) or BASE


def known_names(text: str, known: Collection[str], kind: str) -> tuple[str, ...]:
    """The names in a text. Raises InputError that lists the known ones for another; `kind` is what they name, such as "task"."""
    names = split_names(text)
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"unknown {kind} '{unknown[0]}'; the {kind}s are {', '.join(known)}, joined by '+', or {BASE}")
    return names


def check_name(name: str, kind: str) -> None:
    """Raise InputError for a name that a text of several cannot hold; `kind` is what it names, such as "a task"."""
    if not name or "+" in name or name == BASE:
        raise InputError(f"'{name}' cannot be the name of {kind}: '+' joins several, and {BASE} means none")
