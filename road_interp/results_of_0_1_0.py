"""The JSON of results as version 0.1.0 wrote it, without a format version, in today's keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Content = Mapping[str, Any]
GROUPS = {"parts": "components", "parts, head refitted": "components, head refitted", "most turned": "most rotated"}


def upgraded(result: str, content: Content) -> dict[str, Any]:
    """The content of a result's JSON with today's keys, without its summary. `result` is the name of its class."""
    kept = {key: value for key, value in content.items() if key != "summary"}
    return dict(CHANGES[result](kept)) if result in CHANGES else kept


def _without(*names: str) -> Callable[[Content], Content]:
    """Leaves out numbers that follow from the others."""
    return lambda content: {key: value for key, value in content.items() if key not in names}


def _rows(key: str, change: Callable[[Content], Content]) -> Callable[[Content], Content]:
    """Changes the mappings of a list; what is not one is left for the reader of results to refuse."""

    def changed(content: Content) -> Content:
        rows = content.get(key)
        if not isinstance(rows, list):
            return content
        return {**content, key: [change(row) if isinstance(row, Mapping) else row for row in rows]}

    return changed


def _renamed(old: str, new: str) -> Callable[[Content], Content]:
    return lambda row: {new if key == old else key: value for key, value in row.items()}


def _ablation(row: Content) -> Content:
    row = _renamed("part", "component")(row)
    return {**row, "group": GROUPS[row["group"]]} if str(row.get("group")) in GROUPS else row


def _study(content: Content) -> Content:
    alone = content.get("alone")
    if isinstance(alone, Mapping):
        alone = {name: _without("summary")(each) if isinstance(each, Mapping) else each for name, each in alone.items()}
    return {**_rows("together", _without("summary"))(_without("gap to training alone")(content)), "alone": alone}


def _stretches(row: Content) -> Content:
    if not {"major", "minor"} <= row.keys():
        return row
    return {**_without("major", "minor")(row), "stretches": [row["major"], row["minor"]]}


CHANGES: Mapping[str, Callable[[Content], Content]] = {
    "AblationReport": _rows("rows", _ablation),
    "AngleReport": _rows("sites", _stretches),
    "ControlReport": lambda content: {"steps": None, "words": [], "divergences": {}, "directions": {}} | {**content},
    "CostReport": _rows("methods", lambda row: {"effective": None} | {**row}),
    "InterferenceReport": _without("costs"),
    "MultiTaskAccuracyStudy": _study,
    "QueryKey": _without("correlations"),
    "StrengthReport": _without("rates"),
    "ThroughputReport": _rows("timings", _renamed("peer", "method")),
}
