"""Reading labelled text: formats, columns, splits, GLUE, and errors that name file and row."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
from datasets import Dataset, DatasetDict

from road_interp.data import rows
from road_interp.data.division import subsample
from road_interp.data.labelled import LabelledDataset, load_labelled, load_test_set, read_examples, with_glue_defaults
from road_interp.data.multitask import load_reviews
from road_interp.data.table_files import read_tables
from road_interp.errors import InputError
from road_interp.recipes.loader import load_recipe
from road_interp.recipes.paths import leads_from
from road_interp.recipes.schema import DataRecipe
from road_interp.runs.digests import data_digest

ROWS = [{"sentence": f'text "{n} is NA', "second": f"b{n}", "class": ["no", "yes"][n % 2]} for n in range(40)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def written(path, rows=ROWS):
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(str(path))
    elif path.suffix in (".jsonl", ".json"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        separator = "," if path.suffix == ".csv" else "\t"
        quote = (lambda text: '"' + text.replace('"', '""') + '"') if path.suffix == ".csv" else str
        lines = [separator.join(rows[0])] + [separator.join(quote(str(value)) for value in row.values()) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    return str(path)


def recipe(path, **options):
    return DataRecipe(**{"id": path, "text": "sentence", "label": "class", "validation_size": 8, "test_size": 8, **options})


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_every_format_reads_the_same(tmp_path, suffix):
    task = load_labelled(recipe(written(tmp_path / f"data{suffix}"), text_pair="second"))
    together = [*task.train, *task.validation, *task.test]
    assert sorted((row["text"], row["text_pair"]) for row in together) == sorted((r["sentence"], r["second"]) for r in ROWS)
    assert task.classes == ("no", "yes")
    assert all(row["label"] == int(row["text_pair"][1:]) % 2 for row in together)


def test_splits_are_stratified_fixed_and_apart(tmp_path):
    path = written(tmp_path / "data.csv")
    task, again = load_labelled(recipe(path)), load_labelled(recipe(path))
    texts = [set(split["text"]) for split in (task.train, task.validation, task.test)]
    assert [len(split) for split in texts] == [24, 8, 8]
    assert len(set.union(*texts)) == 40
    assert Counter(task.test["label"]) == {0: 4, 1: 4}
    assert task.test["text"] == again.test["text"]
    assert task.test["text"] != load_labelled(recipe(path, split_seed=1)).test["text"]


def test_empty_texts_and_copies_across_splits_are_warned_of(tmp_path):
    rows = [{**row, "sentence": " "} for row in ROWS[:2]] + ROWS[2:]
    empty = written(tmp_path / "empty.csv", rows)
    with pytest.warns(UserWarning, match=r"empty.csv': 2 texts are empty and are used"):
        load_labelled(recipe(empty))
    copies = written(tmp_path / "copies.csv", ROWS + ROWS)
    with pytest.warns(UserWarning, match="copies.csv") as told:
        task = load_labelled(recipe(copies))
    for name, split in (("validation", task.validation), ("test", task.test)):
        shared = sum(text in set(task.train["text"]) for text in split["text"])
        expected = f"{shared} of 8 {name} texts are also training texts; leave out the copies, or set split_by_text=true"
        assert [expected in str(each.message) for each in told].count(True) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_labelled(recipe(written(tmp_path / "data.csv")))
        load_labelled(recipe(copies, validation_size=0.2, test_size=0.2, split_by_text=True))


@pytest.mark.parametrize(("content", "texts"), [("a\nx\n\ny\n", ["x", "", "y"]), ("a,b\nx,1\n\ny,2\n", ["x", "y"])])
def test_a_blank_line_is_a_row_without_text_where_there_is_one_column(tmp_path, content, texts):
    (tmp_path / "data.csv").write_text(content)
    assert read_tables([tmp_path / "data.csv"], ())["a"] == texts


def test_training_texts_in_a_validation_file_are_warned_of(tmp_path):
    train, test = written(tmp_path / "train.csv"), written(tmp_path / "t.csv", [{**row, "sentence": "new"} for row in ROWS])
    with pytest.warns(UserWarning, match="40 of 40 validation texts are also training texts; leave out the copies$") as told:
        load_labelled(recipe(train, validation=train, test=test, validation_size=0.1, test_size=0.1))
    assert len(told) == 1


def test_test_texts_that_select_the_epoch_are_warned_of(tmp_path):
    train, held_out = written(tmp_path / "train.csv"), written(tmp_path / "v.csv", [{**row, "sentence": "new"} for row in ROWS])
    with pytest.warns(UserWarning, match="40 of 40 test texts are also validation texts; leave out the copies$") as told:
        load_labelled(recipe(train, validation=held_out, test=held_out, validation_size=0.1, test_size=0.1))
    assert len(told) == 1


def test_sizes_beside_a_validation_file_are_warned_of(tmp_path):
    train, held_out = written(tmp_path / "train.csv"), written(tmp_path / "v.csv", [{**row, "sentence": "new"} for row in ROWS])
    with pytest.warns(UserWarning, match=r"data.validation_size is not used: '.*v.csv' is the validation set"):
        task = load_labelled(recipe(train, validation=held_out))
    assert [len(split) for split in (task.train, task.validation, task.test)] == [40, 20, 20]


def test_a_fraction_for_the_test_set_is_of_what_the_validation_set_leaves(tmp_path):
    path = written(tmp_path / "data.csv", ROWS * 5)
    task = load_labelled(recipe(path, validation_size=0.1, test_size=0.1))
    assert [len(split) for split in (task.train, task.validation, task.test)] == [162, 20, 18]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("01", "1", "2"), ("01", "1", "2")),
        (("1", "5", "10"), (1, 5, 10)),
        (("-1", "0", "1"), (-1, 0, 1)),
        (("0.5", "1", "2"), (0.5, 1.0, 2.0)),
        (("True", "False"), (False, True)),
        (("12345678901234567890", "12345678901234567891"), ("12345678901234567890", "12345678901234567891")),
        (("123456789012345678", "123456789012345679"), (123456789012345678, 123456789012345679)),
        (("1", "b"), ("1", "b")),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_labels_with_zeros_before_them_stay_text(tmp_path, labels, classes, suffix):
    rows = [{"sentence": f"text {number}", "class": labels[number % len(labels)]} for number in range(60)]
    task = load_labelled(recipe(written(tmp_path / f"codes{suffix}", rows)))
    assert task.classes == classes
    assert list(map(type, task.classes)) == list(map(type, classes))


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["0", "-1", "12"], [0, -1, 12]),
        (["1.0", "0.25", "-2.5e-07"], [1.0, 0.25, -2.5e-07]),
        (["1", "0.5"], ["1", "0.5"]),
        (["7", "007"], ["7", "007"]),
        (["0.50", "1.25"], ["0.50", "1.25"]),
        (["1e3", "2"], ["1e3", "2"]),
        (["+1", "2"], ["+1", "2"]),
        (["nan", "inf"], ["nan", "inf"]),
        (["true", "false"], ["true", "false"]),
        (["1", ""], ["1", ""]),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_texts_become_numbers_only_if_these_are_printed_alike(tmp_path, suffix, texts, values):
    path = written(tmp_path / f"data{suffix}", [{"name": "a", "value": text} for text in texts])
    assert rows.read_rows(path, None, "train")["value"] == values


def test_the_last_rows_of_a_long_file_are_read_as_the_first(tmp_path):
    path = written(tmp_path / "long.csv", [{"text": f"word {n}", "label": n % 2} for n in range(10_000)])
    with open(path, "a") as file:
        file.write("007,1\n1e3,0\n")
    assert read_examples(DataRecipe(path), path, "train")["text"][-2:] == ["007", "1e3"]


def test_columns_of_the_filter_have_the_values_of_their_texts(tmp_path):
    path = written(tmp_path / "d.csv", [{"text": f"t{n}", "code": f"0{n % 2}", "is": ["True", "false"][n % 2]} for n in range(4)])
    assert rows.read_rows(path, None, "train", {"code": "01", "is": False})["text"] == ["t1", "t3"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_is_read_anew_where_another_one_has_its_time(tmp_path, suffix):
    for name in ("first", "second"):
        path = Path(written(tmp_path / f"data{suffix}", [{"text": name}]))
        os.utime(path, (1, 1))
        assert rows.read_rows(str(path), None, "train")["text"] == [name]


@pytest.mark.parametrize(
    "content",
    ['[{"a": "1", "b": null}, {"b": [2]}]', '\ufeff{"a": "1"}\r\n\r\n{"b": [2]}', '{\n"a": "1"\n}\n{\n"b": [2]\n}\n'],
    ids=["array", "lines", "objects over several lines"],
)
def test_json_may_be_an_array_or_objects_and_may_lack_keys(tmp_path, content):
    (tmp_path / "data.json").write_text(content, encoding="utf-8")
    assert rows.read_rows(str(tmp_path / "data.json"), None, "train")[:] == {"a": ["1", None], "b": [None, [2]]}


def test_a_filter_compares_numbers_of_the_label_column(tmp_path):
    rows = [{"sentence": f"text {number}", "class": number % 3 - 1} for number in range(60)]
    path = written(tmp_path / "signs.csv", rows)
    found = read_examples(recipe(path, filter={"class": -1}), path, "train")
    assert set(found["label"]) == {-1}


def test_filter_and_class_order(tmp_path):
    rows = [{**row, "source": "ab"[n // 20]} for n, row in enumerate(ROWS)]
    path = written(tmp_path / "data.csv", rows)
    task = load_labelled(recipe(path, filter={"source": "b"}, validation_size=0.2, test_size=0.25, classes=["yes", "no"]))
    assert len(task.train) + len(task.validation) + len(task.test) == 20
    assert task.classes == ("yes", "no")
    assert len(load_test_set(recipe(path), path, ("no", "yes")).test) == 40


def test_a_development_set_is_divided_as_in_the_paper(tmp_path):
    train, small = written(tmp_path / "train.tsv"), written(tmp_path / "dev.tsv", ROWS[:20])
    task = load_labelled(recipe(train, validation=small))
    assert [len(split) for split in (task.train, task.validation, task.test)] == [40, 10, 10]
    large = written(tmp_path / "large.tsv", ROWS * 60)
    task = load_labelled(recipe(train, validation=large))
    assert [len(task.validation), len(task.test)] == [1000, 1400]
    task = load_labelled(recipe(train, validation=small, test=large))
    assert [len(task.validation), len(task.test)] == [20, 2400]


GLUE = {
    "rte": ("sentence1", "sentence2", "accuracy"),
    "cola": ("sentence", None, "matthews"),
    "stsb": ("sentence1", "sentence2", "pearson"),
    "mnli": ("premise", "hypothesis", "accuracy"),
}


@pytest.mark.parametrize("name", GLUE)
def test_glue_by_name(monkeypatch, name):
    text, pair, metric = GLUE[name]
    asked = []

    def load(path, config=None):
        asked.append((path, config))
        row = {column: "words" for column in (text, pair) if column}
        rows = Dataset.from_list([{**row, "label": n / 2 if name == "stsb" else n % 2} for n in range(12)])
        return DatasetDict({"train": rows, "validation": rows, "validation_matched": rows})

    monkeypatch.setattr(rows, "load_dataset", load)
    task = load_labelled(DataRecipe(id=f"glue/{name}"))
    assert asked == [("nyu-mll/glue", name)] * 2
    assert task.metric == metric
    assert [len(split) for split in (task.train, task.validation, task.test)] == [12, 6, 6]
    assert task.num_labels == (1 if name == "stsb" else 2)
    assert ("text_pair" in task.train.column_names) == (pair is not None)


def test_the_splits_of_a_data_set_are_read_by_their_names(monkeypatch):
    sizes = {"train": 40, "validation": 8, "test": 12, "unseen": 16}
    table = {
        name: Dataset.from_list([{"text": f"{name} {n}", "label": n % 2} for n in range(size)]) for name, size in sizes.items()
    }
    monkeypatch.setattr(rows, "load_dataset", lambda path, config=None: DatasetDict(table))

    def found(**ids):
        data = load_labelled(DataRecipe("films", **ids))
        return [len(split) for split in (data.train, data.validation, data.test)]

    assert found() == [32, 4, 4]  # of "train" alone
    assert found(validation="films", test="films") == [40, 8, 12]
    assert found(validation="films", test="films:unseen") == [40, 8, 16]
    assert len(load_test_set(DataRecipe("films"), "films", (0, 1)).test) == 12


def test_what_a_recipe_says_of_a_glue_data_set_is_kept():
    mismatched = "nyu-mll/glue:validation_mismatched"
    assert with_glue_defaults(DataRecipe("glue/sst2", split_by_text=True)).validation is None
    tested = with_glue_defaults(DataRecipe("glue/sst2", test="x.csv"))
    assert (tested.validation, tested.test) == ("nyu-mll/glue:validation", "x.csv")
    given = DataRecipe("glue/mnli", validation=mismatched, metric="matthews", text="hypothesis")
    found = with_glue_defaults(given)
    assert (found.validation, found.metric, found.text) == (mismatched, "matthews", "hypothesis")
    assert (found.config, found.text_pair, found.label) == ("mnli", "hypothesis", "label")


def test_metrics():
    labels = np.array([0, 1, 1, 0])
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0], [3.0, 0.0]])
    empty = Dataset.from_dict({})
    classify = LabelledDataset(empty, empty, empty, ("a", "b"), "accuracy")
    assert classify.score(logits, labels) == {"accuracy": 0.75}
    assert replace(classify, metric="matthews").score(logits, labels)["matthews"] == pytest.approx(0.57735, abs=1e-5)
    regress = LabelledDataset(empty, empty, empty, None, "pearson")
    assert regress.score(np.array([[1.0], [2.0], [4.0]]), np.array([2.0, 4.0, 8.0])) == {"pearson": pytest.approx(1.0)}
    assert regress.score(np.ones((3, 1)), np.array([2.0, 4.0, 8.0])) == {"pearson": 0.0}
    with pytest.warns(UserWarning, match="all 3 labels are equal: pearson is not defined, and given as 0"):
        assert regress.score(np.array([[1.0], [2.0], [4.0]]), np.ones(3)) == {"pearson": 0.0}


def test_what_cannot_be_used_is_refused_with_its_place(tmp_path):
    good = written(tmp_path / "data.csv")
    (tmp_path / "nothing.csv").write_text("")
    (tmp_path / "header.csv").write_text("sentence,class\n")
    (tmp_path / "broken.jsonl").write_text('{"sentence": ')
    (tmp_path / "data.xlsx").write_text("x")
    other = written(tmp_path / "other.csv", [*ROWS[:9], {**ROWS[9], "class": "maybe"}])
    holes = written(tmp_path / "holes.jsonl", [*ROWS[:5], {**ROWS[5], "sentence": None}])
    unnamed = written(tmp_path / "unnamed.csv", [*ROWS[:5], {**ROWS[5], "class": ""}])
    rare = written(tmp_path / "rare.csv", [*ROWS, {**ROWS[0], "class": "never"}])
    numbers = written(tmp_path / "numbers.csv", [{**row, "class": number / 4} for number, row in enumerate(ROWS)])
    of_numbers = [{**row, "class": "none" if number == 7 else number / 4} for number, row in enumerate(ROWS)]
    hole = written(tmp_path / "hole.csv", of_numbers)
    (tmp_path / "latin.csv").write_bytes("sentence,class\ncafé,yes\nthé,no\n".encode("latin-1"))
    (tmp_path / "semicolons.csv").write_text("sentence;class\nfine;yes\nlong, dull;no\n")
    cases = [
        (recipe(unnamed), r"row 5: the label is empty; give it one, or leave the row out"),
        (recipe(rare), r"1 of 3 classes have a single example, such as 'never'; sizes"),
        (recipe(numbers), r"have a single example, such as .*; for numbers as labels, set problem_type=regression"),
        (recipe(str(tmp_path / "latin.csv")), r"latin\.csv' cannot be read: .*save it as UTF-8$"),
        (recipe(str(tmp_path / "semicolons.csv")), r"fields in line 3, saw 2; commas separate the columns of a CSV file"),
        (recipe(str(tmp_path / "gone.csv")), r"gone\.csv' does not exist"),
        (recipe(str(tmp_path / "nothing.csv")), r"nothing\.csv' is empty"),
        (recipe(str(tmp_path / "header.csv")), "holds no examples"),
        (recipe(str(tmp_path / "broken.jsonl")), r"broken\.jsonl' cannot be read"),
        (recipe(str(tmp_path / "data.xlsx")), r"'\.xlsx' is not one of \.csv"),
        (recipe(good, text="txt"), "no column 'txt' for text; its columns are sentence, second, class"),
        (recipe(good, label="answer"), "no column 'answer' for label"),
        (recipe(good, filter={"source": "x"}), r"no column 'source' for filter; its columns are .*; data\.filter=null drops it"),
        (recipe(good, filter={"class": "x"}), "holds no examples with {'class': 'x'}"),
        (recipe(good, validation=other), r"other\.csv', row 9: label 'maybe' is outside the classes 'no', 'yes'"),
        (recipe(good, classes=["yes", "maybe"]), "row 0: label 'no' is outside the classes 'yes'"),
        (recipe(holes), "row 5: column 'sentence' holds no text"),
        (recipe(good, filter={"class": "yes"}), "all labels are 'yes'"),
        (recipe(good, problem_type="regression"), "label 'no' is not a finite number"),
        (recipe(hole, problem_type="regression"), "row 7: label 'none' is not a finite number"),
        (recipe(good, test_size=39), "cannot be divided by data.test_size 39"),
        (recipe("glue/rtee"), "unknown GLUE data set 'rtee'; did you mean 'rte'"),
        (recipe("package://no_such_package/x.csv"), "no package 'no_such_package' is installed"),
        (recipe("nobody/nothing"), "data set 'nobody/nothing' cannot be loaded"),
        *((recipe(each), f"'{each}' names no data: give a file, a folder or the id of") for each in ("", ":train", "/")),
    ]
    for bad, message in cases:
        with pytest.raises(InputError, match=message):
            load_labelled(bad)


@pytest.mark.parametrize("place", ["glue/train.tsv", "glue/SST-2/train.tsv"])
def test_a_file_in_a_folder_named_glue_is_a_file(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    file = Path(place)
    file.parent.mkdir(parents=True)
    file.write_text("sentence\tclass\n" + "".join(f"text {number}\t{'no' if number % 2 else 'yes'}\n" for number in range(40)))
    assert load_labelled(recipe(place)).classes == ("no", "yes")


def test_a_further_test_set_needs_the_columns_of_the_filter(tmp_path):
    path = written(tmp_path / "data.csv")
    with pytest.raises(InputError, match=r"has no column 'maker' for filter; its columns are .*; give it one$"):
        load_test_set(recipe(path, filter={"maker": "b"}), path, ("no", "yes"))
    with pytest.raises(InputError, match=r"no text has 90 words or more$"):
        load_test_set(recipe(path, words=90), path, ("no", "yes"))


def test_a_label_beyond_all_numbers_stays_text(tmp_path):
    path = tmp_path / "large.csv"
    path.write_text("sentence,class\n" + "".join(f"film {row},{('1', '1e400')[row % 2]}\n" for row in range(30)))
    assert load_labelled(recipe(str(path), validation_size=4, test_size=4)).classes == ("1", "1e400")


def test_a_label_that_pandas_reads_as_missing_is_no_class(tmp_path):
    path = written(tmp_path / "data.parquet", [{**row, "class": n % 2 if n else float("nan")} for n, row in enumerate(ROWS)])
    with pytest.raises(InputError, match="row 0: the label is empty; give it one, or leave the row out"):
        load_labelled(recipe(path))


def test_labels_that_differ_in_spaces_are_not_two_classes(tmp_path):
    path = tmp_path / "spaces.csv"
    path.write_text("sentence,class\n" + "".join(f"film {row},{('yes', 'no', 'yes ')[row % 3]}\n" for row in range(30)))
    with pytest.raises(InputError, match="the labels 'yes' and 'yes ' differ in spaces only; write them alike"):
        load_labelled(recipe(str(path)))


def test_a_filter_of_null_selects_all_rows(tmp_path):
    path = written(tmp_path / "data.csv")
    assert len(load_test_set(recipe(path, filter=None), path, ("no", "yes")).test) == 40
    content = {"kind": "classification", "model": {"id": "m"}, "data": {"id": path, "filter": {"source": "b"}}}
    assert load_recipe(content, ["data.filter=null"]).data.filter is None


def test_an_error_lists_few_columns_and_cuts_their_names(tmp_path):
    (tmp_path / "wide.csv").write_text(",".join(["a" * 41, *(f"c{n}" for n in range(10))]) + "\n" + ",".join(["1"] * 11) + "\n")
    with pytest.raises(InputError, match=f"its columns are {'a' * 39}…, c0, c1, c2, c3, c4, c5, c6 and 3 more$"):
        load_labelled(recipe(str(tmp_path / "wide.csv")))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"filter": {"source": "b"}}, "; tasks.tone.labels.filter=null drops it$"),
        ({"words": 99}, r"no text has 99 words or more \(tasks.tone.labels.words\)"),
        ({"per_class": 99}, "; tasks.tone.labels.per_class is 99"),
        ({"test_size": 39}, "cannot be divided by tasks.tone.labels.test_size 39"),
    ],
)
def test_errors_about_the_data_of_a_task_name_its_keys(tmp_path, option, message):
    with pytest.raises(InputError, match=message):
        load_labelled(recipe(written(tmp_path / "data.csv"), **option), "tasks.tone.labels")


def test_errors_about_reviews_name_their_keys(tmp_path):
    with pytest.raises(InputError, match="; reviews.filter=null drops it"):
        load_reviews(recipe(written(tmp_path / "data.csv"), filter={"source": "b"}))


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (("0", "1"), {}),
        (("-1.5", "1"), {}),
        (("False", "true"), {}),
        (("NEG", "Positive"), {}),
        (("negative", "pos"), {}),
        (("rotten", "fresh"), {"classes": ["rotten", "fresh"]}),
        (("1", "0"), {"classes": [1, 0]}),
    ],
)
def test_labels_of_reviews_say_which_is_positive(tmp_path, labels, options):
    path = written(tmp_path / "reviews.csv", [{"sentence": "ab"[n % 2], "class": labels[n % 2]} for n in range(6)])
    reviews = load_reviews(recipe(path, **options))
    assert {(review.text, review.label) for review in reviews} == {("a", "negative"), ("b", "positive")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"which of 'fresh' and 'rotten' is positive\? Set reviews.classes=\[NEGATIVE, POSITIVE\]"),
        ({"classes": ["rotten", "ripe"]}, "the labels are 'fresh' and 'rotten'; reviews.classes must list these two"),
        ({"classes": ["rotten", "fresh", "ripe"]}, "reviews.classes must list these two, the negative one first"),
    ],
)
def test_labels_of_reviews_that_do_not_say_which_is_positive_are_refused(tmp_path, options, message):
    path = written(tmp_path / "reviews.csv", [{"sentence": "a film", "class": ["fresh", "rotten"][n % 2]} for n in range(6)])
    with pytest.raises(InputError, match=message):
        load_reviews(recipe(path, **options))


def test_a_first_row_may_be_long_and_follow_a_line_of_blanks(tmp_path):
    (tmp_path / "d.csv").write_text("  \ntext,label\n" + "a" * 140_000 + ",1\nb,0\n")
    found = rows.read_rows(str(tmp_path / "d.csv"), None, "train")
    assert (len(found), len(found[0]["text"])) == (2, 140_000)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('"good film,1\nbad film,0\n"fine film,1\n', 4),  # three rows, which would be one text
        ('"Inception" is great,1\n', 2),
        ('"He said "wow" to me",1\n', 2),
        ('good film,1\n"bad film,0\n', 3),
    ],
)
def test_quotes_that_join_rows_or_would_be_dropped_are_refused(tmp_path, content, line):
    (tmp_path / "data.csv").write_text("sentence,class\n" + content)
    with pytest.raises(InputError, match=rf"data.csv' cannot be read: line {line} .*write quotes inside it twice"):
        read_examples(recipe(str(tmp_path / "data.csv")), str(tmp_path / "data.csv"), "train")


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_a_carriage_return_that_would_divide_a_row_is_refused(tmp_path, suffix, separator):
    """pandas writes such texts without quotes before Python 3.13; where every row ends with one, it divides none."""
    path = tmp_path / f"data{suffix}"
    rows = [("sentence", "class"), ("good\rfilm", "1"), ("bad film", "0")]
    path.write_text("".join(separator.join(row) + "\n" for row in rows), newline="")
    with pytest.raises(InputError, match="cannot be read: line 2 ends with a carriage return, line 1 with a line feed"):
        read_examples(recipe(str(path)), str(path), "train")
    path.write_text("".join(separator.join(row) + "\r" for row in rows if "\r" not in row[0]), newline="")
    assert read_examples(recipe(str(path)), str(path), "train")["text"][:] == ["bad film"]


def test_a_carriage_return_in_quotes_is_read(tmp_path):
    (tmp_path / "data.csv").write_text('sentence,class\n"good\rfilm",1\nbad film,0\n', newline="")
    found = read_examples(recipe(str(tmp_path / "data.csv")), str(tmp_path / "data.csv"), "train")
    assert found["text"][:] == ["good\rfilm", "bad film"]


def test_the_seed_of_the_splits_draws_the_examples_of_every_class(tmp_path):
    path = written(tmp_path / "data.jsonl")
    drawn = [
        {row["text"] for part in (task.train, task.validation, task.test) for row in part}
        for task in (load_labelled(recipe(path, per_class=10, split_seed=seed)) for seed in (0, 0, 1))
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_fractions_of_a_division_by_text_are_those_of_their_splits(tmp_path):
    rows = [{"sentence": f"text number {n}", "class": ["no", "yes"][n % 2]} for n in range(400)]
    path = written(tmp_path / "data.jsonl", rows)
    task = load_labelled(recipe(path, split_by_text=True, validation_size=0.1, test_size=0.3))
    assert len(task.validation) / 400 == pytest.approx(0.1, abs=0.05)
    assert len(task.test) / 400 == pytest.approx(0.3, abs=0.07)


def test_few_examples_of_a_file_are_not_the_first():
    ordered = Dataset.from_dict({"label": list(range(100))})
    few = subsample(ordered, 10)["label"][:]
    assert len(few) == 10
    assert max(few) > 20
    assert sorted(subsample(ordered, 200)["label"][:]) == list(range(100))


def test_a_long_text_and_quotes_inside_of_one_are_read(tmp_path):
    long = "word " * 40000
    (tmp_path / "data.csv").write_text(f'sentence,class\n{long},1\n5" wide,0\n"a ""good"", long\nfilm",1\n', encoding="utf-8-sig")
    found = read_examples(recipe(str(tmp_path / "data.csv")), str(tmp_path / "data.csv"), "train")
    assert found["text"][:] == [long, '5" wide', 'a "good", long\nfilm']


@pytest.mark.parametrize("classes", [("1", "2", "none"), ("false", "true", "unclear"), ("False", "True", "unclear")])
def test_a_further_file_with_numbers_or_truth_values_only_has_the_classes_of_texts(classes, tmp_path):
    train = written(tmp_path / "train.csv", [{**row, "class": classes[number % 3]} for number, row in enumerate(ROWS)])
    test = written(tmp_path / "test.csv", [{**row, "class": classes[number % 2]} for number, row in enumerate(ROWS)])
    found = load_labelled(recipe(train, validation=test))
    assert found.classes == classes
    assert set(found.validation["label"]) == {0, 1}


def versions(path, labels, count=30):
    path.write_text("sentence,class\n" + "".join(f"film {row} of {path},{labels[row % len(labels)]}\n" for row in range(count)))
    return str(path)


def test_labels_that_differ_in_case_only_are_two_classes_and_warned_of(tmp_path):
    data = versions(tmp_path / "train.csv", ("Good", "good", "bad"))
    with pytest.warns(UserWarning, match="the labels 'Good' and 'good' are two classes; write them alike if they are one"):
        assert load_labelled(recipe(data)).classes == ("Good", "bad", "good")


def test_labels_that_are_one_decimal_number_are_two_classes_and_warned_of(tmp_path):
    train = versions(tmp_path / "train.csv", ("1.1", "1.10", "2.0"))
    with pytest.warns(UserWarning, match=r"the labels '1.1' and '1.10' are two classes; write them alike if they are one"):
        found = load_labelled(recipe(train, validation=versions(tmp_path / "valid.csv", ("1.10", "1.1"))))
    assert found.classes == ("1.1", "1.10", "2.0")
    assert set(found.validation["label"]) | set(found.test["label"]) == {0, 1}
    with (
        pytest.warns(UserWarning, match="two classes"),
        pytest.raises(InputError, match=r"row 0: label 1.1 may be the class '1.1' or '1.10'; give the file a row of each"),
    ):
        load_labelled(recipe(train, validation=versions(tmp_path / "one.csv", ("1.10", "2.0"))))


def test_numbers_of_a_regression_and_of_a_filter_may_be_written_in_two_ways(tmp_path):
    path = versions(tmp_path / "scores.csv", ("1.1", "1.10", "2.0"))
    found = load_labelled(recipe(path, problem_type="regression", validation_size=4, test_size=4))
    assert set(found.train["label"]) == {1.1, 2.0}
    assert len(rows.read_rows(path, None, "train", {"class": 1.1})) == 20


def test_a_filter_by_an_object_finds_its_rows(tmp_path):
    path = tmp_path / "data.jsonl"
    content = [{"text": f"text {number}", "label": number, "source": {("film", "book")[number % 2]: 1}} for number in range(4)]
    path.write_text("\n".join(map(json.dumps, content)))
    found = rows.read_rows(str(path), None, "train", {"source": {"book": 1}}, label="label")
    assert found["label"][:] == [1, 3]


def test_training_texts_of_one_class_are_refused(tmp_path):
    one = written(tmp_path / "one.csv", [{**row, "class": "no"} for row in ROWS])
    with pytest.raises(InputError, match="the training texts have one class only"):
        load_labelled(recipe(one, classes=["no", "yes"]))


@pytest.mark.parametrize(
    ("problem", "metric"), [("regression", "accuracy"), ("regression", "matthews"), ("classification", "pearson")]
)
def test_a_metric_of_another_kind_of_label_is_refused(problem, metric):
    with pytest.raises(InputError, match=f"'metric' must be used with problem_type .*, not '?{metric}'?"):
        DataRecipe(id="x", problem_type=problem, metric=metric)


@pytest.mark.parametrize(
    ("suffix", "first", "second", "values"),
    [
        ("tsv", 'text\tkind\n"good film\t01\nbad\t1\n', 'text\tkind\nso so"\t1\n', ("01", "1", "1")),
        ("csv", 'text,kind\n"""good film",01\nbad,NA\n', 'text,kind\n"so so""",1\n', ("01", "NA", "1")),
        ("jsonl", '{"text": "\\"good film", "kind": 1}\n{"text": "bad", "kind":2.5}\n', '{"text": "so so\\""}\n', (1, 2.5, None)),
    ],
)
@pytest.mark.parametrize("readme", [None, "# Films\n\nCollected in 2024.\n", "---\nlicense: mit\n---\n# Films\n"])
def test_the_files_of_a_folder_are_read_as_single_files(tmp_path, suffix, first, second, values, readme):
    (folder := tmp_path / "films").mkdir()
    if readme is not None:
        (folder / "README.md").write_text(readme)
    for name, content in {"train-0": first, "train-1": second, "dev": first}.items():
        (folder / f"{name}.{suffix}").write_text(content)
    read = rows.read_rows(str(folder), None, "train")
    assert list(read["text"]) == ['"good film', "bad", 'so so"']
    assert tuple(map(repr, read["kind"])) == tuple(map(repr, values))
    assert len(rows.read_rows(f"{folder}:validation", None, "train")) == 2
    with pytest.raises(InputError, match="has no split 'test'; its splits are train, validation"):
        rows.read_rows(str(folder), None, "test")


@pytest.mark.parametrize("second", ["text,kind\nc,2\n", 'text,label\n"c" d,2\n'])
def test_files_of_a_folder_that_are_no_table_are_refused(tmp_path, second):
    (folder := tmp_path / "films").mkdir()
    (folder / "train-0.csv").write_text("text,label\na,1\nb,2\n")
    (folder / "train-1.csv").write_text(second)
    with pytest.raises(InputError, match="data set '.*films' cannot be loaded: train-0.csv to train-1.csv: .*(columns|quote)"):
        rows.read_rows(str(folder), None, "train")


def test_a_readme_may_say_how_a_folder_is_read(tmp_path):
    (folder := tmp_path / "films").mkdir()
    (folder / "first.csv").write_text("text;label\na;1\nb;2\n")
    config = "---\nconfigs:\n- config_name: default\n  data_files: first.csv\n  sep: ';'\n---\n"
    (folder / "README.md").write_text(config)
    assert rows.read_rows(str(folder), None, "train")["text"][:] == ["a", "b"]
    (folder / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(InputError, match="data set '.*films' cannot be loaded"):
        rows.read_rows(str(folder), None, "train")


def test_files_of_another_format_in_a_folder_are_not_left_out(tmp_path):
    (folder := tmp_path / "films").mkdir()
    (folder / "a.csv").write_text("text,label\na,1\nb,2\n")
    (folder / "b.jsonl").write_text('{"text": "c", "label": 3}\n')
    with pytest.raises(InputError, match="'(a.csv|b.jsonl)' would not be read beside '(a.csv|b.jsonl)'"):
        rows.read_rows(str(folder), None, "train")
    (folder / "a.csv").rename(folder / "train.csv")
    (folder / "b.jsonl").rename(folder / "notes.jsonl")
    assert rows.read_rows(str(folder), None, "train")["text"][:] == ["a", "b"]


def test_a_parquet_file_that_changed_is_read_anew(tmp_path):
    (folder := tmp_path / "films").mkdir()
    for text in ("a", "b"):
        pandas.DataFrame({"text": [text], "label": ["x"]}).to_parquet(path := folder / "train.parquet")
        os.utime(path, (1e9, 1e9))
        assert rows.read_rows(str(folder), None, "train")["text"][:] == [text]


@pytest.mark.parametrize("name", ["p:B/films", "films:2024"])
def test_a_folder_below_a_colon(tmp_path, monkeypatch, name):
    (folder := tmp_path / name).mkdir(parents=True)
    (folder / "train.csv").write_text("text,label\na,1\nb,2\n")
    (folder / "dev.csv").write_text("text,label\nc,1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for identifier in (str(folder), name, f"~/{name}"):
        assert rows.read_rows(identifier, None, "train")["text"][:] == ["a", "b"]
        assert rows.read_rows(f"{identifier}:validation", None, "train")["text"][:] == ["c"]
        assert data_digest(f"{identifier}:validation") == data_digest(str(folder)) is not None


def test_a_glue_data_set_is_never_the_folder_of_that_name(tmp_path, monkeypatch):
    (folder := tmp_path / "glue" / "mine").mkdir(parents=True)
    (folder / "train.csv").write_text("sentence,class\n" + "a,no\nb,yes\n" * 20)
    assert not leads_from(tmp_path, "glue/mine")
    assert leads_from(tmp_path, "./glue/mine")
    monkeypatch.chdir(tmp_path)
    assert data_digest("glue/mine") is None
    with pytest.raises(InputError, match="unknown GLUE data set 'mine'; for the folder write './glue/mine'"):
        load_labelled(recipe("glue/mine"))
    assert load_labelled(recipe("./glue/mine")).classes == ("no", "yes")


def test_a_data_set_of_a_script_is_refused(tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "films.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError, match="data set '.*films' cannot be loaded"):
        load_labelled(recipe(str(tmp_path / "films")))
    assert not (tmp_path / "ran").exists()
