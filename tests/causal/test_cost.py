"""Cost of an interchange without a model."""

from __future__ import annotations

import pytest

from road_interp.causal.cost import DEEP, FULL, LOW_RANK, SHALLOW, CostReport, MethodCost, cost
from road_interp.errors import InputError


def test_every_method_is_timed_in_every_round():
    told = []
    report = cost(width=16, batch=2, rounds=2, progress=told.append)
    assert told == [SHALLOW, DEEP, LOW_RANK, FULL] * 3
    assert [(each.method, each.parameters) for each in report.methods] == [(SHALLOW, 8), (DEEP, 32), (LOW_RANK, 128), (FULL, 256)]
    assert all(len(each.seconds) == 2 and min(each.seconds) > 0 for each in report.methods)
    assert CostReport.from_json(report.to_json()) == report
    with pytest.raises(InputError, match="no timings of 'LoRA'"):
        report.of("LoRA")
    with pytest.raises(InputError, match="'width' is missing"):
        CostReport.from_json("{}")


def test_ratios_are_medians_over_rounds():
    report = CostReport(2, 1, "cpu", 1, (MethodCost("a", 1, (1.0, 2.0, 1.0)), MethodCost("b", 1, (5.0, 4.0, 7.0))))
    assert report.ratio("b", "a") == 5
