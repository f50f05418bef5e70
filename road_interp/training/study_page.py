"""A self-contained HTML page with the figures, the description and the numbers of every study that has results."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment

from road_interp.errors import InputError
from road_interp.files import write_atomically
from road_interp.plots.export import marked
from road_interp.progress import Progress, silent
from road_interp.provenance import figure_metadata
from road_interp.training.study import Study, StudyOptions
from road_interp.training.study_pieces import FILES, folder_of, report_of, stored_pieces

QUICK_MARK = "quick settings: not a result"


def write_page(studies: Sequence[Study], options: StudyOptions, folder: Path, progress: Progress = silent) -> Path:
    """Draw all studies that have results into a folder, and write index.html there. Raises InputError if none has results."""
    sections = list(_sections(studies, options, folder, progress))
    if not sections:
        raise InputError(f"'{options.folder}' holds no results of any study")
    template = resources.files("road_interp.training").joinpath("studies.html.jinja").read_text("utf-8")
    page = Environment(autoescape=True).from_string(template).render(sections=sections, quick=options.quick, **figure_metadata())
    folder.mkdir(parents=True, exist_ok=True)  # studies that are tables draw nothing into it
    write_atomically(folder / "index.html", page)
    return folder / "index.html"


def draw_study(study: Study, report: Any, options: StudyOptions, folder: Path) -> list[Path]:
    """Draw a report into a folder; figures of quick settings bear a mark, because their numbers mean nothing."""
    with marked(QUICK_MARK if options.quick else ""):
        return list(study.draw(report, folder))


def command_of(study: Study, conditions: Iterable[str]) -> str:
    """The command that measures these conditions of a study, with a placeholder for every input that they need."""
    measured = list(conditions)
    needed = {key for slug in measured for key in study.conditions[slug].requires}
    only = [] if len(measured) == len(study.conditions) else [f"--only {slug}" for slug in measured]
    return " ".join(["road-interp study", study.name, *(f"{key}=PATH" for key in study.inputs if key in needed), *only])


def _sections(studies: Sequence[Study], options: StudyOptions, folder: Path, progress: Progress) -> Iterator[dict[str, Any]]:
    for number, study in enumerate(studies):
        if not any(folder_of(study, options).glob(f"*/{FILES}")):
            continue
        progress(study.name, number, len(studies))
        pieces = stored_pieces(study, options)
        section: dict[str, Any] = {"study": study, "command": command_of(study, pieces), "numbers": [], "images": []}
        try:
            report = report_of(study, pieces, options)
            sentence, numbers = study.describe(report)
            paths = draw_study(study, report, options, folder)
        except InputError as error:  # a condition or a seed that the report needs is not measured yet
            yield {**section, "sentence": f"Not shown: {error}"}
            continue
        images = [(path.stem, base64.b64encode(path.read_bytes()).decode()) for path in paths]
        yield {**section, "sentence": sentence, "numbers": numbers, "images": images}
