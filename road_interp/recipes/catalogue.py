"""The built-in recipes with one line each, and what they need."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from road_interp.recipes.loader import builtin_recipes, load_recipe
from road_interp.recipes.paths import data_ids
from road_interp.sources import MODELS, PACKAGE

FILE = re.compile(r"\.(csv|tsv|jsonl?|parquet|gguf)$")


@dataclass(frozen=True)
class CatalogueEntry:
    """A built-in recipe.

    Attributes:
        name, kind: as in `load_recipe`.
        description: the first sentence of its leading comment.
        needs: packages with models or data, models of `road-interp models`, data files, and models and data of the Hub.
    """

    name: str
    kind: str
    description: str
    needs: tuple[str, ...]


def catalogue() -> tuple[CatalogueEntry, ...]:
    """All built-in recipes, by name."""
    return tuple(_entry(name, path) for name, path in builtin_recipes().items())


def _entry(name: str, path: Path) -> CatalogueEntry:
    recipe = load_recipe(path)
    ids = dict.fromkeys([recipe.model.id, *data_ids(recipe)])
    needs = tuple(dict.fromkeys(map(_need, ids)))
    return CatalogueEntry(name, recipe.kind, _description(path.read_text(encoding="utf-8")), needs)


def _need(identifier: str) -> str:
    if identifier.startswith(MODELS):
        return identifier
    if identifier.startswith(PACKAGE):
        return f"package: {identifier.removeprefix(PACKAGE).partition('/')[0].replace('_', '-')}"
    return f"{'file' if FILE.search(identifier) else 'Hub'}: {identifier}"


def _description(text: str) -> str:
    lines = takewhile(lambda line: line.startswith("#") and line.strip("# "), text.splitlines())
    comment = " ".join(line.lstrip("# ") for line in lines)
    return re.split(r"(?<=\.)\s", comment)[0]
