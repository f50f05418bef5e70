"""What the studies of hidden states measure, with fakes for what is slow, and what their commands say about it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.models import tiny_model, token_batch
from helpers.studies import script_of
from road_interp.errors import InputError
from road_interp.measure import DisentangleReport, DriftStudy, two_layer_classifier
from road_interp.measure.two_layer_classifier import ARMS
from road_interp.training.study import StudyOptions
from road_interp.training.study_pieces import read_study, run_study

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"


def test_disentangle(command, workplace, tmp_path, monkeypatch):
    monkeypatch.setattr(two_layer_classifier, "EPOCHS", 10)
    (tmp_path / "mood").mkdir()
    rows = [f"w{n} {mood} w{n + 1},w{n % 7} w1,{mood}" for n in range(19) for mood in ("fine", "poor")] * 2
    (tmp_path / "mood" / "pairs.csv").write_text("\n".join(["one,two,mood", *rows]) + "\n")
    data = {"id": tmp_path / "mood" / "pairs.csv", "text": "one", "text_pair": "two", "label": "mood", "metric": "matthews"}
    sizes = {"filter": "{}", "per_class": "null", "validation_size": 16, "test_size": 16}
    overrides = [f"data.{key}={value}" for key, value in {**data, **sizes}.items()]
    overrides += [f"model.id={workplace / 'model'}", "--quick"]
    command("disentangle", *overrides)
    content = json.loads((tmp_path / "figures" / "disentangle-mood.json").read_text())
    assert (content["metric"], content["seeds"], len(content["labels"])) == ("matthews", [0], 16)
    assert [outcome["numbers"] for outcome in content["outcomes"]] == [32, 32, 32, 1, 32, 32, 1, 4, 4, 4, 4, 16, 16, 16, 52, 0]
    output = command("disentangle-before-norm", *overrides)
    assert [Path(path).stem for path in output["figures"]] == ["disentangle-mood-before-norm"]
    before = json.loads((tmp_path / "figures" / "disentangle-mood-before-norm.json").read_text())
    assert (content["place"], before["place"]) == ("block 1", "block 1, before its LayerNorm")
    again = command("disentangle", *overrides, "--redraw", "--out", tmp_path / "again")
    names = [outcome["name"] for outcome in content["outcomes"]]
    assert list(again["numbers"])[: len(names)] == names
    assert "as many random directions minus norms at all read points" in again["numbers"]
    first, second = (DisentangleReport.load(tmp_path / folder / "disentangle-mood.json") for folder in ("figures", "again"))
    assert first == second


def test_the_last_token_is_read_where_the_tokeniser_adds_no_cls(known, workplace, tmp_path, monkeypatch):
    """As tokenisers of decoders, which may have a [CLS] that they never add."""
    folder, read = tmp_path / "model", []
    shutil.copytree(workplace / "model", folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None}))

    def token_of(model, loader, token, before_norm):
        read.append(token)
        raise KeyboardInterrupt

    monkeypatch.setitem(script_of(known["disentangle"]), "read_features", token_of)
    data = {"id": workplace / "data.csv", "filter": "{}", "per_class": "null", "validation_size": 40, "test_size": 40}
    for model in (folder, workplace / "model"):
        overrides = (f"model.id={model}", *(f"data.{key}={value}" for key, value in data.items()))
        options = StudyOptions(overrides, quick=True, results=tmp_path, runs=tmp_path)
        with pytest.raises(KeyboardInterrupt):
            run_study(known["disentangle"], options)
    assert read == ["last", "first"]


def test_seeds_of_the_disentangling_are_put_together(known):
    study, options = known["disentangle"], StudyOptions(results=RESULTS)
    whole = read_study(study, options)
    pieces = [DisentangleReport.load(path) for path in sorted((RESULTS / "disentangle" / "output").iterdir())]
    assert whole.seeds == (0, 1, 2)
    for arm in ARMS:
        assert whole.of(arm).predictions == tuple(value for piece in pieces for value in piece.of(arm).predictions)
        assert whole.score(arm)[0] == pytest.approx(np.mean([piece.score(arm)[0] for piece in pieces]))
        assert len(whole.of(arm).chosen) == 3
    assert whole.probes == pieces[0].probes
    assert whole.chance == pieces[0].chance
    for other, message in (
        (pieces[0], "seed"),
        (replace(pieces[1], task="other"), "only reports of one model, task, metric"),
        (replace(pieces[1], labels=pieces[1].labels[::-1]), "on the same texts"),
        (replace(pieces[1], outcomes=(*pieces[1].outcomes[:4], *pieces[1].outcomes[5:])), "the probes differ"),
    ):
        with pytest.raises(InputError, match=message):
            DisentangleReport.over_seeds([pieces[0], other])


@pytest.fixture
def moved(known, monkeypatch):
    """Tiny models in the place of those that `drift` compares; which were trained."""
    script, trained = script_of(known["drift"]), []

    def baseline(recipe, method, *, seed, learning_rate):
        trained.append((method, seed, recipe.training.max_steps))
        assert recipe.seed == seed
        return tiny_model("Bert", seed=10 + seed), {"test": {"accuracy": 0.5}}

    def rotated(piece):
        trained.append(("road_1", piece.seed, piece.recipe.training.max_steps))
        return SimpleNamespace(load_model=lambda: tiny_model("Bert", seed=20 + piece.seed), metrics={"test": {"accuracy": 0.5}})

    texts = {"text": ["a", "b"]}
    monkeypatch.setitem(script, "train_baseline", baseline)
    monkeypatch.setitem(script, "run_of", rotated)
    monkeypatch.setitem(script, "load_model", lambda recipe: (tiny_model("Bert"), []))
    monkeypatch.setitem(script, "load_tokenizer", lambda recipe: None)
    monkeypatch.setitem(script, "load_labelled", lambda data: SimpleNamespace(validation=texts, test=texts))
    monkeypatch.setitem(script, "text_batches", lambda *_, **__: [token_batch(4), token_batch(3, seed=1)])
    script["BASELINES"].clear()
    yield trained
    script["BASELINES"].clear()


def test_drift(known, command, moved, tmp_path):
    for _ in range(2):
        output = command("drift", "--quick")
    assert moved == [("full", 0, 2), ("lora", 0, 2), ("road_1", 0, 2), ("full", 1, 2)]  # each once
    found = DriftStudy.load(tmp_path / "figures" / "drift.json")
    names = ["full fine-tuning", "LoRA, rank 8", "road_1", "full fine-tuning, seed against seed", "pretrained against itself"]
    assert [report.tuned for report in found.reports] == names
    assert [report.base for report in found.reports] == [*["pretrained"] * 3, "full fine-tuning", "pretrained"]
    assert found.scores == (*4 * [{"test": {"accuracy": 0.5}}], {})
    assert all(place.angle == place.dM == (0, 0, 0) for place in found.reports[-1].places)
    assert all(place.angle[0] > 1 for report in found.reports[:-1] for place in report.places)
    assert [Path(path).stem for path in output["figures"]] == ["drift", "drift-scatter", "drift-grid"]
    shown = DriftStudy.load(tmp_path / "figures" / "drift-grid.json")
    assert [report.tuned for report in shown.reports] == names[:3]  # controls are in no grid
    assert "After a LayerNorm the norm is set by construction" in output["sentence"]
    methods = {report.tuned for report in found.reports}
    places = [place for report in found.reports for place in report.places]
    with_null = [place for place in places if not place.norm_is_pinned and place.over_null]
    assert sum(name.endswith("dM over that of an isotropic change") for name in output["numbers"]) == len(with_null) > 0
    assert len(output["numbers"]) == len(places) + len(with_null) + 2 * len(methods)
    against = {f"{each}: against an isotropic change" for each in methods}
    assert against <= set(output["numbers"])
    assert output["numbers"]["pretrained against itself: against an isotropic change"] == "unchanged in 0, 1"


def test_a_block_is_told_from_the_null_over_texts_and_over_seeds(known):
    script = script_of(known["drift"])

    def sign(*seeds):
        places = [SimpleNamespace(over_null=ratio, chance_as_large=large, chance_as_small=small) for ratio, large, small in seeds]
        return script["against_null"](places)

    far, near = ((9.0, 8.0, 9.5), 0.001, 0.999), ((1.5, 1.2, 1.9), 0.3, 0.7)
    assert sign(far, near, near) == "above"
    assert sign(near, near, near) == "undecided"  # one change for all texts is as large three times in ten
    assert sign(far, far, ((1.1, 0.9, 1.3), 0.4, 0.6)) == "undecided"
    assert sign(*3 * [((0.1, 0.05, 0.2), 0.95, 0.05)]) == "below"
    assert sign(*3 * [((0.5, 0.4, 0.6), 0.7, 0.3)]) == "undecided"
    assert sign(far, (None, None, None)) == "no null"  # texts turn by 90 degrees or more


def test_drift_of_every_seed_and_between_seeds(known, moved, tmp_path):
    found = run_study(known["drift"], StudyOptions(results=tmp_path))
    assert len(found.reports) == len(found.scores) == 3 * 3 + 2 + 1
    assert Counter(moved) == Counter((method, seed, None) for method in ("full", "lora", "road_1") for seed in range(3))
    pairs = [report for report in found.reports if report.base == "full fine-tuning"]
    assert len(pairs) == 2
    angles = [found.reports[number].places[0].angle for number in range(3)]
    assert len(set(angles)) == 3
    only = replace(known["drift"], conditions={"road_1": known["drift"].conditions["road_1"]})
    assert read_study(only, StudyOptions(results=tmp_path, seeds=(1,))).reports == found.reports[7:8]


def test_drift_of_a_language_model(known, moved, monkeypatch, tmp_path):
    script, study = script_of(known["drift-smollm2"]), known["drift-smollm2"]
    divisions = []

    def load(recipe):
        divisions.append(recipe.reviews.split_seed)
        return SimpleNamespace(validation=[], test=[])

    monkeypatch.setitem(script, "load_multitask_data", load)
    monkeypatch.setitem(script, "format_prompts", lambda *_: ["a"] * 20)
    found = run_study(study, StudyOptions(results=tmp_path, seeds=(0, 1)))
    assert divisions == [0, 1]
    assert [report.token for report in found.reports] == ["last", "last"]
    assert len({(report.base, report.tuned) for report in found.reports}) == 1  # seeds of one method have one name
    assert study.draw(found, tmp_path / "out")[0] == tmp_path / "out" / "smollm2" / "drift.png"
