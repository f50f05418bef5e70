"""CausalGym's table on a tiny model that was taught a task."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from road_interp.causal.accuracy import interchange_accuracy
from road_interp.causal.counterfactuals import CounterfactualPairs, Pair, Splits, encode_pairs
from road_interp.causal.interchange_runs import InterchangeRuns, full_swap, no_swap
from road_interp.causal.method_scores import TaskScores, score_methods
from road_interp.causal.methods import DAS, STACKED, methods, train_method
from road_interp.errors import InputError
from road_interp.progress import silent

BY_CLASS = ("difference of means", "linear discriminant analysis", "linear probe")


def some_of(pairs: CounterfactualPairs, chosen: slice) -> CounterfactualPairs:
    """The chosen pairs, as pairs of their own."""
    columns = {
        field.name: getattr(pairs, field.name)[chosen] for field in fields(pairs) if isinstance(getattr(pairs, field.name), tuple)
    }
    by_span = {name: {span: each[chosen] for span, each in getattr(pairs, name).items()} for name in ("positions", "words")}
    return replace(pairs, **columns, **by_span)


def test_every_method_is_tested_at_its_best_layer(taught):
    """The information about the name leaves its token in the second block, so that the output of the first is the place."""
    model, pairs = taught
    validation, test = some_of(pairs, slice(0, 100)), some_of(pairs, slice(100, None))
    found = score_methods(model, Splits(pairs, validation, test), [0, 1], "name", steps=60)
    scores = {score.test.method: score for score in found.scores}
    assert list(scores) == [*("full swap", "random direction", "first principal component", "k-means", *BY_CLASS, DAS, STACKED)]
    for name in ("full swap", *BY_CLASS, DAS, STACKED):
        assert scores[name].layer == 0
        assert scores[name].test.log_odds > 1
        assert scores[name].validation[1] == pytest.approx(0, abs=1e-3)
        assert scores[name].selectivity == scores[name].test.log_odds - scores[name].arbitrary
        assert scores[name].arbitrary == pytest.approx(np.mean(scores[name].arbitrary_by_pair), abs=1e-4)
        assert found.of(name) == scores[name]

    def relabelled(each):
        return InterchangeRuns(model, each, 0, "name").relabelled(each.with_arbitrary_labels(model.config.vocab_size, 0))

    swap = train_method(relabelled(pairs), "", methods(0)[DAS], seed=0, steps=60, progress=silent)
    for name, for_arbitrary in (("full swap", full_swap), (DAS, swap)):
        expected = interchange_accuracy(relabelled(test), for_arbitrary, name).log_odds
        assert scores[name].arbitrary == pytest.approx(expected, abs=1e-4)
    assert found.words == test.clusters("name")
    assert scores["random direction"].test.log_odds < scores[DAS].test.log_odds / 2
    assert (found.span, found.layers, found.pairs) == ("name", (0, 1), (len(pairs), len(validation), len(test)))
    assert TaskScores.from_json(found.to_json()) == found


def test_blocks_that_test_pairs_choose_are_warned_of(taught):
    model, pairs = taught
    train, test = some_of(pairs, slice(0, 20)), some_of(pairs, slice(20, 40))
    with pytest.warns(UserWarning, match="20 of 20 test pairs are also validation pairs") as warned:
        score_methods(model, Splits(train, test, test), [0], "name", steps=1)
    assert {Path(each.filename).name for each in warned if "test pairs" in str(each.message)} == {Path(__file__).name}


def test_the_layer_is_chosen_on_validation_pairs_and_the_score_is_that_of_test_pairs(taught):
    model, pairs = taught
    validation, test = some_of(pairs, slice(0, 100)), some_of(pairs, slice(100, None))
    score = score_methods(model, Splits(pairs, validation, test), [0], "name", steps=1).scores[0]
    for split, measured in ((validation, score.validation[0]), (test, score.test.log_odds)):
        expected = interchange_accuracy(InterchangeRuns(model, split, 0, "name"), full_swap, "full swap").log_odds
        assert measured == pytest.approx(expected)
    assert score.validation[0] != pytest.approx(score.test.log_odds)


def test_other_answers_of_the_same_texts(taught):
    """Relabelled runs are those of relabelled pairs."""
    model, pairs = taught
    other = pairs.with_arbitrary_labels(model.config.vocab_size)
    shared, anew = InterchangeRuns(model, pairs, 0, "name").relabelled(other), InterchangeRuns(model, other, 0, "name")
    assert shared.base_odds.tolist() == pytest.approx(anew.base_odds.tolist(), abs=1e-4)
    assert shared.odds(no_swap).tolist() == pytest.approx(anew.odds(no_swap).tolist(), abs=1e-4)


def test_the_span_that_decides(tokenizer):
    def deciding(base, source):
        return encode_pairs([Pair(base, source, " he", " she")], tokenizer).deciding_span

    assert deciding({"who": "Basil", "does": " cried"}, {"who": "Ida", "does": " cried"}) == "who"
    assert deciding({"what": "because", "who": " Basil"}, {"what": "because", "who": " Ida"}) == "who"
    assert deciding({"who": "Basil", "does": " cried", "why": " because"}, {"does": "cried", "why": " because"}) == "does"


def test_the_span_that_decides_is_behind_a_difference_that_some_texts_lack(tokenizer):
    """As in CausalGym's garden paths, whose variable is a comma or nothing: the first words are the same texts."""
    spans = {"sub": "because", "the": " Basil", "comma": " who", "npz": " cried"}
    without = {name: text for name, text in spans.items() if name != "comma"}
    assert encode_pairs([Pair(spans, without, " he", " she")], tokenizer).deciding_span == "npz"


def test_one_block_at_least_is_scored(taught):
    model, pairs = taught
    with pytest.raises(InputError, match="causal.score_methods needs the number of one block at least"):
        score_methods(model, Splits(pairs, pairs, pairs), [], "name")


def test_the_temperature_of_boundless_das_is_not_trained():
    """Its rotation and two borders are; the schedule of the training sets the temperature."""
    made = methods()["boundless DAS"].make(32)
    assert sum(each.numel() for each in made.parameters() if each.requires_grad) == 32**2 + 1
