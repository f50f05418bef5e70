"""Dataclasses from mappings: every error names the whole path of its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from road_interp.errors import InputError
from road_interp.from_mapping import FieldError, from_mapping


@dataclass(frozen=True)
class Leaf:
    size: int
    name: str = "leaf"

    def __post_init__(self) -> None:
        if self.size < 0:
            raise FieldError("size", f"must be positive, not {self.size}")
        if self.name == "bad":
            raise InputError("a leaf is bad")


@dataclass(frozen=True)
class Tree:
    leaf: Leaf
    leaves: tuple[Leaf, ...] = ()
    by_name: Mapping[str, Leaf] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)
    pair: tuple[float, str] = (0.0, "")
    kind: Literal["oak", "ash"] = "oak"
    bits: tuple[bool, ...] = ()
    rows: tuple[tuple[float, ...], ...] = ()
    either: int | str | list[int] | None = None
    anything: Any = None
    flag: bool = False

    def __post_init__(self) -> None:
        if self.kind == "ash" and not self.leaves:
            raise FieldError("leaves", "must be given for an ash")


LEAF = {"size": 1}


def test_values_come_out_as_the_fields_ask_for_them():
    content = {
        "leaf": {"size": 2, "name": "first"},
        "leaves": [LEAF, {"size": 3}],
        "by_name": {"a": LEAF},
        "numbers": [1, 2],
        "pair": ["1e-3", "x"],
        "kind": "ash",
        "bits": "0110",
        "rows": [[1, 2.5], []],
        "either": [4],
        "anything": {"whatever": [None]},
        "flag": True,
    }
    assert from_mapping(Tree, content) == Tree(
        Leaf(2, "first"),
        (Leaf(1), Leaf(3)),
        {"a": Leaf(1)},
        [1, 2],
        (0.001, "x"),
        "ash",
        (False, True, True, False),
        ((1.0, 2.5), ()),
        [4],
        {"whatever": [None]},
        True,
    )
    assert from_mapping(Tree, {"leaf": LEAF, "bits": [True, False]}).bits == (True, False)
    assert from_mapping(Tree, {"leaf": LEAF, "bits": ""}).bits == ()
    for either in (3, "three", None, [1, 2], []):
        assert from_mapping(Tree, {"leaf": LEAF, "either": either}).either == either


REFUSED = {
    "the content must be a mapping, not 3": 3,
    "'leaf' is missing": {},
    "unknown key 'nubmers'; did you mean 'numbers'?": {"leaf": LEAF, "nubmers": 1},
    "unknown key 'size'; did you mean 'leaf.size'?": {"leaf": LEAF, "size": 1},
    "unknown key 'zzz'; known are leaf, leaves, by_name": {"leaf": LEAF, "zzz": 1},
    "leaf must be a mapping, not 1": {"leaf": 1},
    "'leaf' must be a mapping, not None": {"leaf": None},
    "'leaf.size' is missing": {"leaf": {}},
    "'leaf.size' must be whole number, not True": {"leaf": {"size": True}},
    "'leaf.size' must be whole number, not 1.0": {"leaf": {"size": 1.0}},
    "'leaf.size' must be positive, not -1": {"leaf": {"size": -1}},
    "unknown key 'leaf.siz'; did you mean 'leaf.size'?": {"leaf": {"siz": 1}},
    "leaf: a leaf is bad": {"leaf": {"size": 1, "name": "bad"}},
    "'leaves' must be given for an ash": {"leaf": LEAF, "kind": "ash"},
    "leaves[1] must be a mapping, not 7": {"leaf": LEAF, "leaves": [LEAF, 7]},
    "'leaves[1].size' must be positive, not -2": {"leaf": LEAF, "leaves": [LEAF, {"size": -2}]},
    "'leaves[0].name' must be text, not None": {"leaf": LEAF, "leaves": [{"size": 1, "name": None}]},
    "'by_name.a.size' must be positive, not -3": {"leaf": LEAF, "by_name": {"a": {"size": -3}}},
    "unknown key 'by_name.a.x'": {"leaf": LEAF, "by_name": {"a": {"size": 1, "x": 1}}},
    "'by_name' must be a mapping, not [1]": {"leaf": LEAF, "by_name": [1]},
    "'numbers[2]' must be whole number, not 'x'": {"leaf": LEAF, "numbers": [1, 2, "x"]},
    "'numbers' must be a list of whole numbers, not 3": {"leaf": LEAF, "numbers": 3},
    "'pair' must be a list of 2 values, not of 3": {"leaf": LEAF, "pair": [1, "x", 2]},
    "'pair[0]' must be number, not nan": {"leaf": LEAF, "pair": [float("nan"), "x"]},
    "'pair[1]' must be text, not 1": {"leaf": LEAF, "pair": [1, 1]},
    "'kind' must be 'oak' or 'ash', not 'elm'": {"leaf": LEAF, "kind": "elm"},
    "'bits' must be a list of true or falses, not '012'": {"leaf": LEAF, "bits": "012"},
    "'bits[1]' must be true or false, not 1": {"leaf": LEAF, "bits": [True, 1]},
    "'rows[1][0]' must be number, not 'x'": {"leaf": LEAF, "rows": [[], ["x"]]},
    "'either' must be whole number or text or a list of whole numbers or null, not 1.5": {"leaf": LEAF, "either": 1.5},
    "'either[0]' must be whole number, not 'a'": {"leaf": LEAF, "either": ["a"]},
    "'flag' must be true or false, not 'yes'": {"leaf": LEAF, "flag": "yes"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_errors_name_the_path_of_the_key(message):
    with pytest.raises(InputError) as caught:
        from_mapping(Tree, REFUSED[message])
    assert str(caught.value).startswith(message)


def test_a_path_that_is_given_stands_in_front():
    with pytest.raises(InputError, match=r"^'tasks\.x\.leaf\.size' must be positive, not -1$"):
        from_mapping(Tree, {"leaf": {"size": -1}}, "tasks.x")
    with pytest.raises(InputError, match=r"^tasks\.x: a leaf is bad$"):
        from_mapping(Leaf, {"size": 1, "name": "bad"}, "tasks.x")


def test_long_values_are_cut_in_messages():
    with pytest.raises(InputError) as caught:
        from_mapping(Tree, {"leaf": LEAF, "flag": "y" * 1000})
    assert len(str(caught.value)) < 150


def test_a_field_error_is_an_input_error_that_names_its_field():
    error = FieldError("size", "must be positive, not -1")
    assert isinstance(error, InputError)
    assert (str(error), error.field) == ("'size' must be positive, not -1", "size")
