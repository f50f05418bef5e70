"""Tie the figures of the manual to results/: each says of which results it was drawn.

The text chunk "Results" of a PNG file in docs/figures holds a hash of the results of its study. `make figures` writes it,
`make check-results` compares it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from PIL import Image, PngImagePlugin

from road_interp.training.study_pieces import FILES

CHUNK = "Results"


def study_of(figure: Path, results: Path) -> str:
    """The study of a figure: its file name begins with the name of the study's folder. Of several, the longest name."""
    names = [each.name for each in results.iterdir() if each.is_dir() and f"{figure.stem}-".startswith(f"{each.name}-")]
    if not names:
        raise SystemExit(f"{figure}: no study in {results} has this figure")
    return max(names, key=len)


def results_hash(study: str, results: Path) -> str:
    """A hash of all results of a study: of their paths and contents."""
    found = hashlib.sha256()
    for path in sorted((results / study).glob(f"*/{FILES}")):
        found.update(path.relative_to(results).as_posix().encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def stamp(figure: Path, results: Path) -> None:
    """Write the hash of the study's results into a PNG file with a palette."""
    image = Image.open(BytesIO(figure.read_bytes()))
    chunks = PngImagePlugin.PngInfo()
    for name, text in {**image.info, CHUNK: results_hash(study_of(figure, results), results)}.items():
        if isinstance(text, str):
            chunks.add_text(name, text)
    image.save(figure, format="png", optimize=True, pnginfo=chunks, dpi=image.info.get("dpi"))


def outdated(figures: Path, results: Path) -> Iterator[str]:
    """A line for every PNG file that was drawn from other results than those of today."""
    for figure in sorted(figures.glob("*.png")):
        study = study_of(figure, results)
        if Image.open(figure).info.get(CHUNK) != results_hash(study, results):
            yield f"{figure.name} was drawn from other results of {study}: make figures"
