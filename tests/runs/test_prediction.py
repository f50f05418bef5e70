"""Predictions of a finished run on texts, and the names of its classes."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import shutil
from dataclasses import asdict, replace

import pandas
import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification

from helpers.cli import run
from helpers.recipes import recipe_for
from road_interp.cli.output_file import check_output_file
from road_interp.errors import InputError
from road_interp.models.loading import load_tokenizer
from road_interp.runs.prediction import Prediction, compute_logits, predictions_csv
from road_interp.training.api import evaluate, train


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predictions_name_the_classes_in_the_order_of_the_texts(finished):
    texts = ["fine grand lovely w1 w2 fine", "dull", "grand fine", "poor dull awful awful poor"]
    predictions = finished.predict(texts)
    assert [each.text for each in predictions] == texts
    assert [each.label for each in predictions] == ["positive", "negative", "positive", "negative"]
    model, recipe = finished.load_model(), finished.recipe.model
    logits = torch.from_numpy(compute_logits(model, load_tokenizer(recipe), texts, recipe.max_length))
    assert [each.probability for each in predictions] == pytest.approx(logits.softmax(1).amax(1).tolist(), abs=1e-5)
    (alone,) = finished.predict(texts[2:3])
    assert alone.probability == pytest.approx(predictions[2].probability, abs=1e-5)
    assert finished.predict([]) == ()


def test_predictions_report_their_progress(finished):
    steps = []
    finished.predict(["fine"] * 40, progress=lambda *step: steps.append(step))
    assert steps == [(f"loading the model of {finished.folder}",), ("texts", 0, 40), ("texts", 32, 40)]


def test_texts_that_do_not_fit_the_run_are_named(finished):
    with pytest.raises(InputError, match=r"one text is given; put it into a list: predict\(\[text\]\)"):
        finished.predict("grand")
    with pytest.raises(InputError, match="row 1: the run was trained on single texts; give a text"):
        finished.predict(["grand", ("fine", "dull")])
    with pytest.raises(InputError, match="row 0: the run was trained on single texts"):
        finished.predict([3])
    with pytest.raises(InputError, match="predict needs a list of texts, not NoneType"):
        finished.predict(None)
    with pytest.raises(InputError, match=r"texts, row 1: \\ud83d is half of a character; leave it out"):
        finished.predict(["grand", "dull \ud83d"])


def test_any_iterable_of_texts_is_taken(finished):
    expected = finished.predict(["grand", "dull"])
    assert finished.predict(pandas.Series(["grand", "dull"], index=[7, 3])) == expected
    assert finished.predict(text for text in ("grand", "dull")) == expected


def test_a_run_of_pairs_predicts_pairs_and_writes_them(workplace, capsys, monkeypatch):
    overrides = ["data.problem_type=regression", "data.label=score", "data.text_pair=text", "training.epochs=1"]
    paired = train(recipe_for(workplace, *overrides), workplace / "pairs", progress=False)
    (prediction,) = paired.predict([("grand", "fine")])
    assert prediction.text == ("grand", "fine")
    assert isinstance(prediction.label, float)
    assert prediction.probability is None
    with pytest.raises(InputError, match=r"row 0: the run was trained on pairs; give a pair of texts, such as \(text"):
        paired.predict(["grand"])
    evaluate(paired, predictions=workplace / "pairs.csv", progress=False)
    rows = rows_of(workplace / "pairs.csv")
    assert list(rows[0]) == ["text", "text_pair", "label", "prediction", "probability"]
    expected = [each.label for each in paired.predict([(row["text"], row["text_pair"]) for row in rows])]
    assert [float(row["prediction"]) for row in rows] == pytest.approx(expected, abs=1e-4)
    code, out, err = run(capsys, monkeypatch, "predict", paired.folder, workplace / "data.csv")
    assert code == 0, err
    first = next(csv.DictReader(io.StringIO(out)))
    assert list(first) == ["text", "text_pair", "prediction", "probability"]
    assert first["text"] == first["text_pair"]
    assert first["probability"] == ""


def test_the_command_predicts_texts_without_labels(finished, tmp_path, capsys, monkeypatch):
    texts = ["grand, fine", "dull", "poor dull awful"]
    data, path = tmp_path / "new.jsonl", tmp_path / "predictions.csv"
    data.write_text("".join(json.dumps({"text": text, "source": "a"}) + "\n" for text in texts))
    predicted = finished.predict(texts)
    code, out, err = run(capsys, monkeypatch, "predict", finished.folder, data)
    assert code == 0, err
    assert out == predictions_csv(predicted)
    assert out.startswith('text,prediction,probability\n"grand, fine",positive,')
    code, out, err = run(capsys, monkeypatch, "predict", finished.folder, data, "--out", path)
    assert (code, out) == (0, f"3 predictions: {path}\n"), err
    assert path.read_text() == predictions_csv(predicted)
    code, out, err = run(capsys, monkeypatch, "predict", finished.folder, data, "--json")
    assert json.loads(out) == {"predictions": [asdict(each) for each in predicted]}


def test_a_text_with_line_ends_is_one_cell():
    texts = ["one\rrow", "one\nrow", "one\r\nrow"]
    written = predictions_csv([Prediction(text, "good", 0.5) for text in texts])
    assert written.replace("one\r\nrow", "").count("\r") == 1
    assert [row["text"] for row in csv.DictReader(io.StringIO(written, newline=""))] == texts
    assert pandas.read_csv(io.StringIO(written))["text"].tolist() == texts


def test_texts_that_the_command_cannot_predict_are_named(finished, tmp_path, capsys, monkeypatch):
    (tmp_path / "other.csv").write_text("review\ngrand\n")
    (tmp_path / "numbers.jsonl").write_text('{"text": "grand"}\n{"text": null}\n')
    wrong = {
        "no.csv": "data file 'no.csv' does not exist",
        "other.csv": "'other.csv' has no column 'text' for text; its columns are review",
        "numbers.jsonl": "'numbers.jsonl', row 1: column 'text' holds no text",
    }
    monkeypatch.chdir(tmp_path)
    for data, message in wrong.items():
        code, out, err = run(capsys, monkeypatch, "predict", finished.folder, data)
        assert (code, out) == (2, "")
        assert message in err


def test_texts_of_a_folder_that_the_run_was_trained_on_are_noticed(finished, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text(f"text,label\n{split} text,good\n")
    shutil.copy(folder / "train.csv", tmp_path / "copy.csv")
    trained = replace(finished, recipe=replace(finished.recipe, data=replace(finished.recipe.data, id=str(folder))))
    for data in (f"{folder}:train", folder / "train.csv", tmp_path / "copy.csv"):
        assert trained.trained_on(str(data))
    for data in (folder, f"{folder}:test", folder / "test.csv", folder / "no.csv", f"{folder}:no", tmp_path, "hub/set"):
        assert not trained.trained_on(str(data))


def test_evaluate_writes_the_predictions_of_the_scored_texts(finished, workplace, capsys, monkeypatch, tmp_path):
    path, data = tmp_path / "predictions.csv", workplace / "data.csv"
    code, out, err = run(capsys, monkeypatch, "evaluate", finished.folder, "--data", data, "--predictions", path, "--json")
    assert code == 0, err
    assert f"road-interp: warning: '{data}' holds the texts that the run was trained on" in err
    rows = rows_of(path)
    assert [row["text"] for row in rows] == [row["text"] for row in rows_of(data)]
    assert [row["label"] for row in rows] == [row["label"] for row in rows_of(data)]
    right = [row["prediction"] == row["label"] for row in rows]
    assert json.loads(out)["accuracy"] == pytest.approx(sum(right) / len(right))
    predicted = finished.predict([row["text"] for row in rows])
    assert [row["prediction"] for row in rows] == [each.label for each in predicted]
    assert [float(row["probability"]) for row in rows] == pytest.approx([each.probability for each in predicted], abs=1e-4)
    inside = tmp_path / "no" / "p.csv"
    for wrong, message in ((tmp_path, f"'{tmp_path}' is a folder"), (inside, f"the folder '{inside.parent}' does not exist")):
        code, _, err = run(capsys, monkeypatch, "evaluate", finished.folder, "--predictions", wrong)
        assert (code, err.splitlines()[-1]) == (2, f"road-interp: --predictions: {message}")


def test_the_file_that_is_read_is_not_replaced(finished, workplace, capsys, monkeypatch, tmp_path):
    mine, data = tmp_path / "mine.csv", workplace / "data.csv"
    mine.write_bytes(before := data.read_bytes())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds").mkdir()
    (tmp_path / "ds" / "test.csv").write_bytes(before)
    for words in (
        ("predict", finished.folder, mine, "--out", tmp_path / "." / "mine.csv"),
        ("predict", finished.folder, "ds:test", "--out", "ds/test.csv"),
        ("evaluate", finished.folder, "--data", mine, "--predictions", mine),
        ("evaluate", finished.folder, "--predictions", data),  # the file of the run
        ("predict", finished.folder, mine, "--out", data),
        ("report", finished.folder, "--out", data),
        *(
            (*command, option, finished.folder / own)
            for command, option in (
                (("predict", finished.folder, mine), "--out"),
                (("evaluate", finished.folder), "--predictions"),
                (("report", finished.folder), "--out"),
            )
            for own in ("metrics.json", "adapter/adapter.json")
        ),
    ):
        code, _, err = run(capsys, monkeypatch, *words)
        assert code == 2
        assert "is the file that is read, or one of them; choose another name" in err
    for _ in range(2):  # a file in the run's folder that is not of the run is replaced
        code, _, err = run(capsys, monkeypatch, "evaluate", finished.folder, "--predictions", finished.folder / "mine.csv")
        assert code == 0, err
    code, _, err = run(capsys, monkeypatch, "predict", finished.folder, mine, "--out", "x" * 300)
    assert (code, "cannot be written (File name too long)" in err) == (2, True)
    assert mine.read_bytes() == data.read_bytes() == before
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.csv").symlink_to("mine.csv")
    for name, message in (("pipe", "is no regular file, and would be replaced"), ("link.csv", "is a link, which would be")):
        code, _, err = run(capsys, monkeypatch, "predict", finished.folder, data, "--out", name)
        assert (code, message in err) == (2, True)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match="is the file that is read"):
        check_output_file(mine, "--predictions", ["~/mine.csv"])  # as a recipe names data


def test_the_data_of_the_training_are_known_by_name_and_content(finished, workplace, tmp_path, capsys, monkeypatch):
    copy, other = tmp_path / "copy.csv", tmp_path / "other.csv"
    copy.write_bytes((workplace / "data.csv").read_bytes())
    other.write_text("text,label\ngrand fine,positive\n")
    assert finished.trained_on(str(copy))
    assert not finished.trained_on(str(other))
    assert not finished.trained_on("glue/rte")
    of_a_set = replace(finished, recipe=replace(finished.recipe, data=replace(finished.recipe.data, id="films")))
    assert not of_a_set.trained_on("films")  # whose test split is read
    assert not of_a_set.trained_on("films:test")
    assert of_a_set.trained_on("films:train")
    _, _, err = run(capsys, monkeypatch, "evaluate", finished.folder, "--data", other, "--json")
    assert "warning" not in err


def test_class_names_reach_the_configuration_and_the_export(finished, tmp_path):
    names = {0: "negative", 1: "positive"}
    config = finished.load_model().model.config
    assert config.id2label == names
    assert config.label2id == {"negative": 0, "positive": 1}
    finished.to_peft(tmp_path / "peft")
    assert json.loads((tmp_path / "peft" / "classes.json").read_text()) == {"classes": ["negative", "positive"]}


def test_loading_a_run_reports_no_missing_head(finished, monkeypatch):
    messages = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: messages.append(record.getMessage()))
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "level", logger.level)
    transformers.utils.logging.set_verbosity_warning()
    logger.addHandler(handler)
    finished.load_model()
    silent = list(messages)
    AutoModelForSequenceClassification.from_pretrained(finished.recipe.model.id)
    logger.removeHandler(handler)
    assert not silent
    assert "MISSING" in "".join(messages)
