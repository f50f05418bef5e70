"""The page of types: classes and aliases in the signatures of public names that are not public names themselves."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Type(NamedTuple):
    """A type, the module that defines it, and for an alias its meaning."""

    name: str
    module: str
    meaning: str | None


def types_of(namespaces: Sequence[str]) -> dict[Type, list[str]]:
    """The types in the signatures of the public names of modules, and in these types, each with the names that have it."""
    modules = [importlib.import_module(name) for name in namespaces]
    public = {name: getattr(module, name) for module in modules for name in module.__all__}
    found: dict[Type, list[str]] = {}
    pending = [annotation for name, value in public.items() for annotation in annotations_of(name, value)]
    while pending:
        where, module, annotation = pending.pop(0)
        for word in re.findall(r"\b[A-Z]\w+", annotation):
            defined = definition(module, word)
            if defined is None or word in public:
                continue
            if defined not in found:
                pending += annotations_in(defined)
            if where not in found.setdefault(defined, []):
                found[defined].append(where)
    return found


def annotations_in(found: Type) -> Iterator[tuple[str, str, str]]:
    """The annotations of a class, which users do not make, or the meaning of an alias."""
    if found.meaning is None:
        return annotations_of(found.name, getattr(importlib.import_module(found.module), found.name), constructor=False)
    return iter([(found.name, found.module, found.meaning)])


def annotations_of(name: str, value: Any, constructor: bool = True) -> Iterator[tuple[str, str, str]]:
    """Where, in which module and what: the annotations of a function, or of the fields and public methods of a class."""
    if inspect.isclass(value):
        fields = inspect.get_annotations(value).items()
        yield from ((name, value.__module__, str(each)) for field, each in fields if not field.startswith("_"))
        for own, member in vars(value).items():
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if inspect.isfunction(function) and (not own.startswith("_") or (constructor and own == "__init__")):
                where = name if own == "__init__" else f"{name}.{own}"
                yield from ((where, value.__module__, str(each)) for each in inspect.get_annotations(function).values())
    elif inspect.isfunction(value):
        function = inspect.unwrap(value)
        yield from ((name, function.__module__, str(each)) for each in inspect.get_annotations(function).values())


def definition(module: str, word: str) -> Type | None:
    """Where the package defines a name that a module uses; None for a name of another package, or of no type."""
    for node in statements(module):
        if isinstance(node, ast.ClassDef) and node.name == word:
            return Type(word, module, None)
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [word]:
            return Type(word, module, ast.unparse(node.value))
        if isinstance(node, ast.ImportFrom) and word in {each.asname or each.name for each in node.names}:
            return definition(node.module or "", word) if (node.module or "").startswith("road_interp") else None
    return None


@functools.cache
def statements(module: str) -> list[ast.stmt]:
    """The statements of a module, also those for type checkers only."""
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    body = ast.parse(Path(found.origin).read_text()).body
    return [each for node in body for each in (node.body if isinstance(node, ast.If) else [node])]
