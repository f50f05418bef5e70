"""Site: the output of a module, or a slice of it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.sites.site import Site


def test_whole_numbers_of_numpy_are_saved_as_json(tmp_path):
    site = Site("a", np.int64(8), np.int64(0))
    assert site == Site("a", 8, 0)
    assert json.dumps([site.width, site.layer]) == "[8, 0]"
    RoadAdapter.identity([site]).save(tmp_path)
    assert RoadAdapter.load(tmp_path).sites == (site,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "8"), "site 'a': width must be a whole number, not '8'"),
        (("a", 8.0), "site 'a': width must be a whole number, not 8.0"),
        (("a", 8, "0"), "site 'a': layer must be a whole number, not '0'"),
        (("a", None), "site 'a': width must be a whole number, not None"),
    ],
)
def test_other_values_are_refused(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Site(*arguments)
