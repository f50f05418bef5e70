"""Checks of the arguments of a RoadModel's calls: inputs, positions and pyvene's subspaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import Cache

from road_interp.arguments import is_whole
from road_interp.errors import InputError, did_you_mean, shown
from road_interp.models.token_selection import ROW_INPUTS, STATES
from road_interp.sites.positions import Positions, parse_positions

OF_ROWS = ("adapter_names", "positions", "tasks", "trainable_tasks", "strengths")


def checked_inputs(base: Any, named: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model's inputs. Raises InputError for any that are not one mapping."""
    if base is None:
        given = f"{name}=..." if (name := next(iter(named), None)) else ""
        raise InputError(
            f"give the inputs as one mapping, model({{'input_ids': ids}}) or model(batch), not model({given}); inside `with "
            "model.attached() as base`, base(**batch) is a call as in transformers"
        )
    if not isinstance(base, Mapping):
        raise InputError(
            f"give the inputs as a mapping, base={{'input_ids': ids}}, not as an object of type {type(base).__name__}"
        )
    ids = base.get("input_ids")
    if ids is not None and not (isinstance(ids, Tensor) and ids.ndim >= 2):
        given = f"a tensor of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise InputError(
            f"input_ids must be a tensor of shape (rows, tokens), not {given}: tokenizer(texts, return_tensors='pt')"
        )
    return base


def check_known(unknown: Mapping[str, Any]) -> None:
    """Raise InputError for arguments that `RoadModel.forward` does not have."""
    if unknown:
        hint = did_you_mean(name := min(unknown), OF_ROWS, "the arguments for rows are")
        raise InputError(f"unknown argument '{name}': what the base model takes goes into the mapping; {hint}")


def check_no_inputs(options: Mapping[str, Any]) -> None:
    """Raise InputError for inputs of the model beside the mapping of its inputs, where rows and tokens are looked for."""
    if name := next((each for each in (*ROW_INPUTS, "inputs") if options.get(each) is not None), None):
        raise InputError(f"'{name}' is an input of the model: give it in the mapping of its inputs, with the tokens")


def check_given_once(base: Mapping[str, Any], named: Mapping[str, Any]) -> None:
    """Raise InputError for an argument that stands in the mapping of the inputs and beside it."""
    if name := next((each for each in named if each in base), None):
        raise InputError(f"'{name}' is given twice, in the mapping of the inputs and beside it: give it once")


def check_new_cache(inputs: Mapping[str, Any]) -> None:
    """Raise InputError for a cache in the inputs of two passes, of which both would write into it."""
    if any(value is not None and (name in STATES or isinstance(value, Cache)) for name, value in inputs.items()):
        raise InputError("output_original_output: both passes would write into the cache that is given; call without it")


def check_subspaces(subspaces: Any, sites: int) -> None:
    """Raise InputError unless subspaces have pyvene's form: a list of sites, each None or a list of rows of numbers."""

    def are_rows(each: Any) -> bool:
        return each is None or (
            isinstance(each, list | tuple) and all(row is None or isinstance(row, list | tuple) for row in each)
        )

    if not (isinstance(subspaces, list | tuple) and len(subspaces) == sites and all(map(are_rows, subspaces))):
        raise InputError(
            f"subspaces needs an entry for every site, here {sites}, with a list of numbers for every row: [[[0], [1]]] for one "
            f"site and two rows, not {shown(subspaces)}"
        )


def check_base_locations(locations: Any) -> None:
    """Raise InputError unless pyvene's unit_locations are a mapping with the tokens of the base, alone or beside a source's."""
    if not isinstance(locations, Mapping) or len(locations) != 1 or not {"base", "sources->base"} >= set(locations):
        raise InputError(
            f"unit_locations must be {{'base': tokens}} or {{'sources->base': (tokens of the source, tokens of the base)}}, not "
            f"{shown(locations)}"
        )


def token_lists(tokens: Any) -> Any:
    """Tokens in nested lists, from tensors, arrays and tuples."""
    if hasattr(tokens, "tolist"):
        return tokens.tolist()
    return [token_lists(each) for each in tokens] if isinstance(tokens, list | tuple) else tokens


def check_unit_locations(locations: Any, sites: int, rows: int) -> None:
    """Raise InputError unless pyvene's unit_locations have an entry for every site, each None or the tokens of every row.

    pyvene writes the states of one row into all rows where it gets the tokens of one.
    """
    lists = locations if isinstance(locations, list | tuple) else ()
    if len(lists) != sites or any(each is not None and not _are_lists(each, rows) for each in lists):
        raise InputError(
            f"unit_locations need an entry for every site, here {sites}, with a list of as many tokens for each of the {rows} "
            f"rows of the batch: [[[0], [1]]] for one site and two rows, not {shown(locations)}"
        )


def _are_lists(entry: Any, rows: int) -> bool:
    if not isinstance(entry, list) or len(entry) != rows or not all(isinstance(each, list) for each in entry):
        return False
    return len({*map(len, entry)}) == 1 and all(isinstance(token, int) for each in entry for token in each)


def checked_positions(positions: Positions) -> Positions:
    """The positions, lists as lists of integers. Raises InputError for any other form; `position_mask` checks them on a batch."""
    if isinstance(positions, str):
        parse_positions(positions)
        return positions
    try:
        rows = [list(row.tolist() if isinstance(row, Tensor) else row) for row in positions]
    except TypeError:  # a number, or a list of numbers
        rows = []
    if not rows or not all(is_whole(index) for row in rows for index in row):
        raise InputError(
            f"{shown(positions)} is not a position: use all, first, last, prompt, f3, l2, f3+l2, "
            "or one list of indices per row, as in [[0, 1], [-1]]"
        )
    return [[int(index) for index in row] for row in rows]
