"""The pieces of a study: those that are missing are measured, and all that are stored are read.

Each piece (one condition and seed) is stored as `RESULTS/STUDY/CONDITION/seed-N.json.gz`, and is measured only if that
file is missing. It holds no summary, whose intervals would stay those of the day when they were computed.
"""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from road_interp.errors import InputError, did_you_mean
from road_interp.files import GZIP, check_folder, check_writable, write_atomically
from road_interp.from_mapping import from_mapping
from road_interp.models.loading import find_device
from road_interp.progress import Progress, silent
from road_interp.provenance import current_provenance
from road_interp.recipes.loader import apply_override, load_recipe, read_recipe
from road_interp.results import Result
from road_interp.training.arguments import forward_precision
from road_interp.training.manifest import read_manifest, record
from road_interp.training.study import Condition, Piece, Pieces, Study, StudyOptions, settings_hash
from road_interp.training.study_inputs import check_digests, digests

FILES = "seed-*.json*"  # in the folder of a condition


def run_study(study: Study, options: StudyOptions, progress: Progress = silent) -> Result:
    """Measure the missing pieces, and return the report of all pieces.

    Raises:
        InputError: an unknown condition, a file that is not a result of this study, or no pieces at all.
    """
    _check_conditions(study, options)
    check_folder(options.folder)
    chosen = options.only or _measurable(study, options)
    _warn_of_replaced(study, chosen, options)
    for slug in chosen:
        _stored(study, slug, options)  # a piece of other settings is an error before the first measurement
    for slug in chosen:
        seeds = _seeds(study, study.conditions[slug], options)
        if left := options.seeds[len(seeds) :]:
            what = f"{slug} takes {len(seeds)} of the seeds that are given"
            warnings.warn(f"study '{study.name}': {what}; left out: {', '.join(map(str, left))}", stacklevel=2)
        for seed in seeds:
            path = _path(study, slug, seed, options)
            if not path.is_file():
                progress(f"{study.conditions[slug].name}, seed {seed}")
                read_manifest(options.folder)  # one that cannot be read is an error before the measurement
                check_writable(options.folder)
                check_writable(options.runs)
                started = time.monotonic()
                result = _measure(study, slug, seed, options, progress)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, result.to_json(with_summary=False) + "\n")
                training = getattr(_recipe(study, slug, seed, options), "training", None)
                precision = None if training is None else forward_precision(training, find_device(None))
                record(options.folder, path, time.monotonic() - started, precision)
    return report_of(study, stored_pieces(study, options), options)


def read_study(study: Study, options: StudyOptions) -> Result:
    """The report of the stored pieces. Raises InputError for an unknown condition, and as `stored_pieces` and `report_of`."""
    _check_conditions(study, options)
    pieces = stored_pieces(study, options)
    _warn_of_replaced(study, pieces, options)
    return report_of(study, pieces, options)


def _check_conditions(study: Study, options: StudyOptions) -> None:
    """Raise InputError for the name of a condition that the study does not have."""
    if unknown := [slug for slug in options.only if slug not in study.conditions]:
        hint = did_you_mean(unknown[0], study.conditions, "the conditions are")
        raise InputError(f"study '{study.name}' has no condition '{unknown[0]}'; {hint}")


def report_of(study: Study, pieces: Pieces, options: StudyOptions) -> Result:
    """The report of the pieces that `options` select. Raises InputError if there are none, or none that it needs."""
    if not pieces:
        raise InputError(f"'{folder_of(study, options)}' holds no results of this study")
    return study.report(pieces)


def stored_pieces(study: Study, options: StudyOptions) -> Pieces:
    """The stored pieces of the seeds, by condition; empty without any.

    Warns of further seeds that have pieces, unless the options choose the seeds. Raises InputError for a damaged piece, and for
    one of other settings or input files.
    """
    if not options.seeds and (further := _further_seeds(study, options)):
        what = f"results of further seeds are left out ({', '.join(map(str, further))}); --seeds chooses them"
        warnings.warn(f"study '{study.name}': {what}", stacklevel=3)
    return {slug: results for slug in study.conditions if (results := _stored(study, slug, options))}


def _further_seeds(study: Study, options: StudyOptions) -> list[int]:
    """The seeds that have pieces, and that their conditions do not take by default."""
    found: set[int] = set()
    for slug, condition in study.conditions.items():
        names = [_name(path).removeprefix("seed-") for path in (folder_of(study, options) / slug).glob(FILES)]
        found |= {int(name) for name in names if name.isdecimal()} - {*_seeds(study, condition, options)}
    return sorted(found)


def _measurable(study: Study, options: StudyOptions) -> list[str]:
    """The conditions that are measured by default; the others are warned of."""
    given = {override.partition("=")[0] for override in options.overrides}
    missing = {slug: [key for key in condition.requires if key not in given] for slug, condition in study.conditions.items()}
    for slug, keys in missing.items():
        if keys:
            needed = ", ".join(f"{key}=..." for key in keys)
            warnings.warn(f"study '{study.name}': {slug} is left out: it needs {needed}", stacklevel=3)
    limit = study.quick_conditions if options.quick else None
    given_all = [slug for slug, keys in missing.items() if not keys]
    measured = [slug for slug in given_all if study.applies(_recipe(study, slug, (options.seeds or study.seeds)[0], options))]
    if others := [slug for slug in given_all if slug not in measured]:
        warnings.warn(f"study '{study.name}': the inputs do not hold {', '.join(others)}: left out", stacklevel=3)
    return measured[:limit]


def _warn_of_replaced(study: Study, slugs: Iterable[str], options: StudyOptions) -> None:
    """Warn of overrides that replace one of a condition, which may be what the condition is named by."""
    for override in options.overrides:
        key = override.partition("=")[0]
        others = {slug: {*study.conditions[slug].overrides} - {override} for slug in slugs}
        if replaced := [slug for slug, each in others.items() if any(re.match(rf"{re.escape(key)}[.=]", own) for own in each)]:
            what = f"{override} replaces a setting of {', '.join(replaced)}"
            warnings.warn(f"study '{study.name}': {what}, which figures and tables still name as before", stacklevel=3)


def _measure(study: Study, slug: str, seed: int, options: StudyOptions, progress: Progress) -> Result:
    condition = study.conditions[slug]
    piece = Piece(_recipe(study, slug, seed, options), slug, seed, options.runs, progress)
    inputs = digests(piece.recipe, study.inputs)
    result = (condition.measure or study.measure)(piece)
    return replace(result, provenance=current_provenance((seed,), settings_of(study, condition, options), inputs))


def _recipe(study: Study, slug: str, seed: int, options: StudyOptions) -> Any:
    overrides = [*_overrides(study, study.conditions[slug], options), f"seed={seed}"]
    return load_recipe(study.recipe, overrides) if isinstance(study.recipe, str) else _settings(study.recipe, overrides)


def _stored(study: Study, slug: str, options: StudyOptions) -> list[Result]:
    """The stored pieces of a condition. Raises InputError as `stored_pieces`."""
    condition = study.conditions[slug]
    paths = [_path(study, slug, seed, options) for seed in _seeds(study, condition, options)]
    if not (measured := [path for path in paths if path.is_file()]):
        return []
    inputs = digests(_recipe(study, slug, 0, options), study.inputs)
    return [_load(study, condition, path, options, inputs) for path in measured]


def _load(study: Study, condition: Condition, path: Path, options: StudyOptions, inputs: Mapping[str, str]) -> Result:
    """The result in a file. Raises InputError for a result that was measured with another seed, settings or input files."""
    result = study.result.load(path)
    made, settings = result.provenance, settings_of(study, condition, options)
    stored = None if made is None else made.settings
    if made is None or stored != settings:
        raise InputError(f"'{path}' was measured with other settings ({stored}, not {settings}); choose another --results")
    if [_name(path)] != [f"seed-{seed}" for seed in made.seeds]:
        raise InputError(f"'{path}' was measured with seed {', '.join(map(str, made.seeds))}: move it where it belongs")
    check_digests(made.inputs, inputs, path)
    return result


def settings_of(study: Study, condition: Condition, options: StudyOptions) -> str:
    """Hash of a condition's settings without the seed: the content of the recipe with the overrides, defaults left out.

    Of a dataclass of settings it is that of the overrides: another default of the class is not noticed in stored pieces.
    """
    overrides = _without_inputs(study, _overrides(study, condition, options))
    content = read_recipe(study.recipe, overrides) if isinstance(study.recipe, str) else overrides
    return settings_hash(json.dumps(content, sort_keys=True, default=str))


def _overrides(study: Study, condition: Condition, options: StudyOptions) -> list[str]:
    return [*condition.overrides, *(study.quick if options.quick else ()), *options.overrides]


def _without_inputs(study: Study, overrides: Sequence[str]) -> list[str]:
    return [override for override in overrides if override.partition("=")[0] not in study.inputs]


def _settings(kind: type[Any], overrides: Sequence[str]) -> Any:
    """A dataclass of settings from overrides such as "steps=200"."""
    content: dict[str, Any] = {}
    for override in overrides:
        apply_override(content, override)
    return from_mapping(kind, content)


def _seeds(study: Study, condition: Condition, options: StudyOptions) -> tuple[int, ...]:
    seeds = options.seeds or study.seeds[: study.quick_seeds if options.quick else None]
    return seeds[: condition.seeds]


def _path(study: Study, slug: str, seed: int, options: StudyOptions) -> Path:
    """The file of a piece, also one that is not compressed."""
    path = folder_of(study, options) / slug / f"seed-{seed}.json"
    return path if path.is_file() else path.with_name(f"{path.name}{GZIP}")


def _name(path: Path) -> str:
    return path.name.partition(".")[0]


def folder_of(study: Study, options: StudyOptions) -> Path:
    """The folder of a study's pieces; other settings have one of their own."""
    overrides = _without_inputs(study, options.overrides)
    return options.folder / (f"{study.name}-{settings_hash(overrides)}" if overrides else study.name)
