"""Cost of an interchange without a model."""

from __future__ import annotations

import sys

import pytest
import pyvene
import torch
from torch import nn

from road_interp.causal.cost import (
    DEEP,
    FULL,
    HALF_BY_QR,
    HALF_BY_STACK,
    ONE,
    PYVENE_EIGHT,
    PYVENE_ONE,
    SHALLOW,
    STACKED,
    VECTOR,
    CostReport,
    UnitVectorInterchange,
    cost,
)
from road_interp.causal.trained_values import effective_parameters
from road_interp.errors import InputError
from road_interp.models.interchange import RoadInterchangeIntervention
from road_interp.models.low_rank_interchange import LowRankInterchangeIntervention
from road_interp.rotation import butterfly


def test_every_method_is_timed_in_every_round():
    told = []
    report = cost(width=32, batch=2, rounds=2, progress=lambda what, done, total: told.append((what, done, total)))
    thin = {VECTOR: 32, ONE: 32, "DAS, rank 8 by QR": 8 * 32, HALF_BY_QR: 16 * 32}
    stacks = {SHALLOW: 16, STACKED: 5 * 16, HALF_BY_STACK: 5 * 16, DEEP: 69 * 16}
    counts = {**thin, **stacks, PYVENE_ONE: 32, PYVENE_EIGHT: 8 * 32, FULL: 32 * 32}
    assert told == [(method, number, 3) for number in range(3) for method in counts]
    assert {each.method: each.parameters for each in report.methods} == counts
    assert all(len(each.seconds) == 2 and min(each.seconds) > 0 for each in report.methods)
    assert CostReport.from_json(report.to_json()) == report
    with pytest.raises(InputError, match="no timings of 'LoRA'"):
        report.of("LoRA")
    with pytest.raises(InputError, match="'width' is missing"):
        CostReport.from_json("{}")


def test_there_is_a_round_at_least():
    with pytest.raises(InputError, match="causal.cost: rounds must be a whole number of at least 1, not 0"):
        cost(width=32, rounds=0)
    for width in (1, 33):
        with pytest.raises(InputError, match=f"causal.cost: width must be even, not {width}"):
            cost(width=width)


def test_slow_methods_have_fewer_rounds(monkeypatch):
    module = sys.modules[cost.__module__]
    monkeypatch.setattr(module, "_seconds", lambda interchange, base, source: 11.0 if interchange is slow[0] else 0.1)
    slow = []
    monkeypatch.setattr(module.pyvene, "RotatedSpaceIntervention", lambda embed_dim: slow.append(nn.Linear(2, 2)) or slow[0])
    monkeypatch.setattr(module, "effective_parameters", lambda interchange, width: 0)
    rounds = {each.method: len(each.seconds) for each in cost(width=32, rounds=5).methods}
    assert rounds.pop(FULL) == 3
    assert set(rounds.values()) == {5}


def test_one_row_of_a_stack_reads_few_angles():
    """By level from the last: 1, 2, 4, ... planes, at most all."""
    stack = RoadInterchangeIntervention(576, depth=butterfly.full_depth(576), rows=[0])
    assert (sum(each.numel() for each in stack.parameters()), effective_parameters(stack, 576)) == (2880, 799)
    assert effective_parameters(RoadInterchangeIntervention(576), 576) == 288
    for swaps_all in (
        RoadInterchangeIntervention(64, depth=6, rows=range(64)),
        LowRankInterchangeIntervention(64, 64),
        pyvene.RotatedSpaceIntervention(embed_dim=64),
    ):
        assert effective_parameters(swaps_all, 64) == 0


def test_every_form_of_rank_one_swaps_along_one_direction():
    """One row of a stack, a unit vector, and a QR decomposition of one column: equal where their directions are."""
    stack = RoadInterchangeIntervention(16, depth=4, rows=[0], spread=3.0)
    direction = stack.basis()[:, 0]
    vector, column = UnitVectorInterchange(16), LowRankInterchangeIntervention(16, 1)
    with torch.no_grad():
        vector.weight.copy_(-2 * direction)
        column.weight.copy_(3 * direction.unsqueeze(1))
    base, source = torch.randn(5, 16), torch.randn(5, 16)
    expected = base + ((source - base) @ direction).outer(direction)
    for interchange in (stack, vector, column):
        torch.testing.assert_close(interchange(base, source), expected, atol=1e-5, rtol=1e-5)


def test_the_callers_random_numbers_stay(monkeypatch):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    cost(width=16, batch=2, rounds=1)  # also where there are fewer than 32 coordinates
    assert torch.equal(torch.rand(3), expected)


def test_values_with_effect_are_unknown_where_double_precision_fails():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, base, source):
            return base + (source - base).float() @ self.weight

    assert effective_parameters(Single(), 8) is None
