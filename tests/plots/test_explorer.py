"""The explorer redraws what is chosen, without a browser."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import road_interp as ri
from helpers.models import random_adapter, tiny_model
from road_interp import plots
from road_interp.errors import InputError
from road_interp.sites.site import Site

pytestmark = pytest.mark.rendered

SITES = tuple(
    Site(f"layers.{layer}.{kind}", width, layer, kind) for layer in (0, 1) for kind, width in (("query", 8), ("fc1", 12))
)


def test_every_choice_is_drawn():
    adapter = random_adapter((*SITES, Site("head", 4)))
    shown = ri.Explorer(adapter)
    assert [label for label, _ in shown.layer.options] == ["0", "1", "-"]
    pictures = [bytes(shown.picture.value)]
    assert pictures[0].startswith(b"\x89PNG")

    def redrawn():
        pictures.append(bytes(shown.picture.value))
        assert pictures[-1] != pictures[-2]

    shown.module.value = "layers.0.fc1"
    redrawn()
    assert shown.plane.max == 5
    shown.plane.value = 5
    redrawn()
    shown.strength.value = 0.5
    redrawn()
    shown.layer.value = 1
    redrawn()
    assert shown.site.name == "layers.1.fc1"  # the same kind of module in another layer
    shown.module.value = "layers.1.query"
    redrawn()
    assert (shown.plane.max, shown.plane.value) == (3, 3)
    shown.layer.value = None
    redrawn()
    assert shown.site.name == "head"


def test_the_stack_of_a_module_stays_chosen():
    shown = ri.Explorer(random_adapter(ri.find_sites(tiny_model("T5"), r".*SelfAttention\.[qk]")))
    kinds = [f"{stack}.block: layer.0.SelfAttention.{role}" for stack in ("encoder", "decoder") for role in "qk"]
    assert [label for label, _ in shown.module.options] == kinds
    shown.module.value = "decoder.block.0.layer.0.SelfAttention.k"
    shown.layer.value = 1
    assert shown.site.name == "decoder.block.1.layer.0.SelfAttention.k"


def test_a_folder_is_explored(tmp_path):
    random_adapter(SITES).save(tmp_path)
    assert ri.Explorer(str(tmp_path)).site == SITES[0]


@pytest.mark.parametrize("variant", ["road_2", "road_4"])
def test_only_road_1_has_a_strength(variant):
    shown = ri.Explorer(random_adapter(SITES, variant))
    assert shown.strength.disabled
    assert bytes(shown.picture.value).startswith(b"\x89PNG")


def test_a_scale_of_0_has_no_strength_and_parameters_are_drawn():
    adapter = random_adapter(SITES)
    zero = replace(adapter, alpha={name: scale * (torch.arange(len(scale)) > 0) for name, scale in adapter.alpha.items()})
    assert ri.Explorer(zero).strength.disabled
    trained = replace(adapter, theta={name: torch.nn.Parameter(angle) for name, angle in adapter.theta.items()})
    assert bytes(ri.Explorer(trained).picture.value).startswith(b"\x89PNG")


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_the_circle_goes_where_the_matrix_sends_it(variant):
    adapter = random_adapter(SITES, variant)
    ax = plots.plane(adapter, site="layers.1.fc1", index=2)
    before, after = (line.get_xydata() for line in ax.lines)
    assert np.allclose(np.hypot(*before.T), 1)
    block = adapter.matrix("layers.1.fc1")[4:6, 4:6]
    assert np.allclose(before @ block.T.numpy(), after, atol=1e-6)


def test_a_plane_that_is_not_there_is_refused():
    adapter = ri.RoadAdapter.identity(SITES)
    for index in (4, -1, 1.0, True, "1"):
        with pytest.raises(InputError, match=rf"site 'layers.0.query' has planes 0 to 3, not {index!r}"):
            plots.plane(adapter, index=index)
