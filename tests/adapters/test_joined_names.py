import pytest

from road_interp.adapters.joined_names import BASE, check_name, join_names, known_names, split_names
from road_interp.errors import InputError


@pytest.mark.parametrize("names", [(), ("a",), ("a", "b"), ("b", "a", "c")])
def test_a_text_holds_its_names_in_order(names):
    assert split_names(join_names(names)) == names


def test_no_name_is_written_as_pefts_base():
    assert join_names([]) == BASE == "__base__"
    assert known_names(BASE, ["a"], "task") == ()


def test_unknown_names_and_names_that_a_text_cannot_hold():
    with pytest.raises(InputError, match=r"unknown variable 'c'; the variables are a, b, joined by '\+', or __base__"):
        known_names("a+c", ["a", "b"], "variable")
    for name in ("", "a+b", BASE):
        with pytest.raises(InputError, match="cannot be the name of a task: '\\+' joins several, and __base__ means none"):
            check_name(name, "a task")
