"""The plane maps of a pass."""

from __future__ import annotations

import torch
from transformers import Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM

from helpers.models import GROUPED, random_adapter, tiny_model, token_batch
from road_interp.adapters.bank import RoadBank
from road_interp.models.road_model import RoadModel
from road_interp.models.row_maps import RowMaps
from road_interp.rotation import plane_maps
from road_interp.rotation.inplace import SMALLEST_INVERTIBLE
from road_interp.rotation.plane_maps import PlaneMaps, repeat_rows
from road_interp.sites.find import find_sites


def test_maps_are_invertible_down_to_the_smallest_scale():
    smallest = torch.full((4,), SMALLEST_INVERTIBLE, dtype=torch.float32).to(torch.complex64)
    assert RowMaps([PlaneMaps(smallest), PlaneMaps(torch.ones_like(smallest))]).invertible
    assert not RowMaps([PlaneMaps(torch.ones_like(smallest)), PlaneMaps(smallest / 2)]).invertible
    assert not RowMaps([PlaneMaps(torch.ones_like(smallest), torch.ones_like(smallest))]).invertible


def test_maps_of_joined_rows_and_tokens_are_not_kept():
    """They are as large as the states, and of another size in every pass."""
    maps = RowMaps([PlaneMaps(torch.ones(2, 4, dtype=torch.complex64))])
    (site,) = find_sites(tiny_model("Llama"), "block-output", layers=0)
    for tokens in (3, 5, 7):
        assert maps.for_batch(0, torch.zeros(2 * tokens, 8), site).a.shape == (2 * tokens, 4)
    for _ in range(2):
        maps.for_batch(0, torch.zeros(2, 8), site)
        maps.for_batch(0, torch.zeros(4, 3, 8), site)
    assert len(maps._shaped) == 2


def test_rows_joined_with_tokens_repeat_the_maps_of_their_own_sites_only(monkeypatch):
    """As in the experts that all tokens share: they have as many rows as there are tokens in the batch."""
    repeated = []

    def repeat(values, rows):
        if len(values) != rows:
            repeated.append((rows, values.shape[1]))
        return repeat_rows(values, rows)

    monkeypatch.setattr(plane_maps, "repeat_rows", repeat)
    base = Ernie4_5_MoeForCausalLM(Ernie4_5_MoeConfig(**GROUPED, moe_k=2, moe_num_experts=4, moe_intermediate_size=24)).eval()
    sites = find_sites(base, "q_proj|shared_experts[.]up_proj")
    bank = RoadBank({name: random_adapter(sites, seed=seed) for seed, name in enumerate("ab")})
    RoadModel(base, bank)(token_batch(2, 5), adapter_names=["a", "b"])
    assert repeated == [(10, site.width // 2) for site in sites if "shared_experts" in site.name] != []
