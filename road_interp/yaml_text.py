"""YAML text as Python values; keys that are given twice and numbers that YAML reads in base 8 or 60 are errors."""

from __future__ import annotations

import re
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from road_interp.errors import InputError, first_line, one_line
from road_interp.files import read_text


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a key that is given twice, and whole numbers of other values than they look like."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node. Raises ConstructorError, which names key and lines, for a key that is given twice."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line, name = key.start_mark.line + 1, key.value
            if isinstance(name, str) and name in lines:
                raise ConstructorError(problem=f"the key '{name}' is given twice, in lines {lines[name]} and {line}")
            lines[str(name)] = line
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """The whole number of a node.

        Raises ConstructorError, which names the line, for more digits than Python prints, and for 010 and 1:30, which are 8 and
        90 in YAML 1.1.
        """
        if re.fullmatch(r"[-+]?0[0-7_]+|.*:.*", node.value):
            where = f"'{node.value}' in line {node.start_mark.line + 1}"
            raise ConstructorError(problem=f"{where} is a number in base 8 or 60: leave out zeros before it, or put it in quotes")
        try:
            number: int = super().construct_yaml_int(node)
            str(number)
        except ValueError:
            raise ConstructorError(problem=f"the number in line {node.start_mark.line + 1} has too many digits") from None
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: text that is not valid YAML or is nested too deeply, a key that is given twice, or a whole number with too
            many digits or in base 8 or 60.
    """
    return deepcopy(_parsed(text))


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises InputError for a file that cannot be read, invalid YAML, or another kind of value."""
    text = read_text(path)
    try:
        content = parse_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a mapping of keys to values")
    return content


@lru_cache(1024)
def _parsed(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (RecursionError, ValueError, LookupError, AttributeError) as error:  # PyYAML's for a value such as 2023-02-30
        raise yaml.YAMLError(first_line(error)) from None
    finally:
        loader.dispose()
