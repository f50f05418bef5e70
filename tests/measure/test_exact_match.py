"""Exact match: the extraction of answers, and the score of a trained model."""

from __future__ import annotations

import json

import pytest

from helpers.multitask import behaviours_recipe
from road_interp.cli import train_commands
from road_interp.data.answer_extraction import Question, extract_answer
from road_interp.data.multitask import load_questions
from road_interp.errors import InputError
from road_interp.measure.exact_match import ExactMatchReport, exact_match
from road_interp.measure.labels import MethodLabel
from road_interp.models.generation import Answer, greedy_answers, greedy_settings
from road_interp.models.loading import load_model, load_tokenizer
from road_interp.recipes.loader import load_recipe
from road_interp.recipes.schema import TaskRecipe
from road_interp.training.api import evaluate, train

NUMBER, CHOICE = r"-?\d[\d,]*(?:\.\d+)?", r"true|false|(?:answer|solution)[1-5]"


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (NUMBER, "He has 3 of 4, so 1,200 remain.", "1200"),
        (NUMBER, "[1200.0]", "1200"),
        (NUMBER, "It falls to -2.50.", "-2.5"),
        (NUMBER, "none", None),
        (CHOICE, "not answer1: the correct answer is Answer2", "answer2"),
        (CHOICE, "the correct answer is answer2.", "answer2"),
        (r"is (\w+)", "It is TRUE", "true"),
        (CHOICE, "The correct answer is True", "true"),
        (NUMBER, "1234567", "1234567"),
        (NUMBER, "10.333333333333334", "10.3333333333"),
        (r"\d*", "12 and no more", "12"),
        (r"\d*", "none", None),
        (r"is (true)|so: (false)", "It is true, so: false", "false"),
    ],
)
def test_the_last_match_is_what_counts(pattern, text, expected):
    assert extract_answer(pattern, text) == expected


def test_case_and_the_writing_of_numbers_do_not_count():
    def answering(prompts, active):
        return [Answer(text, True) for text in ("Paris is it: Paris", "It is 5,000")]

    questions = {"facts": [Question("the capital", "paris"), Question("how many", "5,000.0")]}
    written = {"facts": [Question("the capital", " Paris"), Question("how many", "5000")]}
    for each in (questions, written):
        report = exact_match(answering, each, {"facts": r"[\w,.]+"}, ["facts"], MethodLabel("m", "x", 0))
        assert report.rate("facts", "facts")[0] == 1


def test_what_cannot_be_scored_is_refused_before_anything_is_generated():
    def generate(prompts, active):
        pytest.fail("generated first")

    label, questions = MethodLabel("m", "x", 0), {"sums": [Question("1 + 1", "2")]}
    for changed, message in (
        ({"label": "m"}, "needs MethodLabel, not str: give measure.MethodLabel"),
        ({"patterns": {"sums": "("}}, r"the pattern of 'sums', '\(', is no regular expression: missing \)"),
        ({"patterns": {"sums": None}}, "the pattern of 'sums', None, is no regular expression"),
        ({"patterns": None}, "needs Mapping, not NoneType: give a regular expression by task"),
        ({"patterns": {}}, "no pattern of 'sums'"),
        ({"questions": {"sums": ["1 + 1"]}}, "needs Question, not str: give the questions of 'sums'"),
    ):
        given = {"questions": questions, "patterns": {"sums": r"\d"}, "tasks": ["sums"], "label": label, **changed}
        with pytest.raises(InputError, match=message):
            exact_match(generate, **given)


def scripted():
    """A report of answers that are right only with the task's own planes active, except for one easy question."""

    def answering(prompts, active):
        return [Answer("It is 4." if active == "sums" or prompt == "easy" else "No idea.", True) for prompt in prompts]

    questions = {"sums": [Question("easy", "4"), Question("hard", "4")]}
    return exact_match(answering, questions, {"sums": NUMBER}, ["sums", "other"], MethodLabel("m", "x", 3))


def test_questions_are_asked_with_nothing_its_own_and_all_planes():
    report = scripted()
    assert {active: report.rate("sums", active)[0] for active in report.correct["sums"]} == {
        "__base__": 0.5, "sums": 1.0, "sums+other": 0.5,
    }  # fmt: skip
    rate, low, high = report.rate("sums", "__base__")
    assert 0 < low < rate < high < 1
    assert report.answers["sums"]["sums+other"] == ("It is 4.", "No idea.")
    assert report.summary()["questions"] == {"sums": 2}
    assert ExactMatchReport.from_json(report.to_json()) == report
    with pytest.raises(InputError, match="'model' is missing"):
        ExactMatchReport.from_json("{}")


def test_the_planes_of_a_shared_task_are_active_with_every_task_but_not_where_none_is():
    asked = {"sums": [Question("a", "4")], "manners": [Question("b", "4")]}
    patterns, label = dict.fromkeys(asked, NUMBER), MethodLabel("m", "x", 0)
    report = exact_match(
        lambda prompts, active: [Answer(active, True)], asked, patterns, ["sums", "other", "manners"], label, shared="manners"
    )
    for task, own in (("sums", "sums+manners"), ("manners", "manners")):
        assert [*report.correct[task]] == ["__base__", own, "sums+other+manners"]
        assert all(texts == (active,) for active, texts in report.answers[task].items())


def test_a_task_without_a_pattern_is_refused():
    questions = {"sums": [Question("easy", "4")]}
    with pytest.raises(InputError, match="no pattern of 'sums'"):
        exact_match(lambda prompts, active: [Answer("4", True)], questions, {}, ["sums"], MethodLabel("m", "x", 3))
    with pytest.raises(InputError, match="there are no questions of 'sums'"):
        exact_match(lambda prompts, active: [], {"sums": []}, {"sums": ".*"}, ["sums"], MethodLabel("m", "x", 3))
    with pytest.raises(InputError, match="0 answers to 1 questions of 'sums'"):
        exact_match(lambda prompts, active: [], questions, {"sums": ".*"}, ["sums"], MethodLabel("m", "x", 3))


@pytest.fixture(scope="module")
def asked(language_workplace):
    """A recipe with one task that is trained on 12 questions and tested on four of them."""
    data = str(language_workplace / "pairs.jsonl")
    task = {"id": data, "prompt": "{{ question }}", "answer": "{{ reply.text }}", "test": data, "match": NUMBER}
    content = {
        "kind": "multitask-generation",
        "model": {"id": str(language_workplace / "model"), "max_length": 64},
        "tasks": {"sums": task},
        "adapter": {"sites": "block-output"},
        "scoring": {"test": 4, "max_new_tokens": 4},
        "training": {"max_steps": 2, "batch_size": 4, "precision": "fp32"},
    }
    return content


def test_a_run_is_tested_on_its_questions_and_on_others(language_workplace, asked, capsys):
    run = train(load_recipe(asked), language_workplace / "sums", progress=False)
    report = ExactMatchReport.from_json((run.folder / "exact-match.json").read_text())
    assert run.metrics["test"] == report.summary() == evaluate(run, progress=False)
    assert report.summary()["questions"] == {"sums": 4}
    more = language_workplace / "more.jsonl"
    more.write_text(json.dumps({"question": "What is 9?", "reply": {"text": "It is 9."}}) + "\n")
    assert evaluate(run, str(more), progress=False)["questions"] == {"sums": 1}
    train_commands.evaluate(run.folder, str(more))
    assert "exact matches [95% interval]" in " ".join(capsys.readouterr().out.split())
    recipe = behaviours_recipe(language_workplace, "training.max_steps=1")
    several = train(recipe, language_workplace / "other", progress=False)
    with pytest.raises(InputError, match="--data is for labelled text and one task's questions"):
        evaluate(several, str(more))


def test_a_shared_task_is_tested_without_planes_too(language_workplace, asked):
    own = asked["tasks"]["sums"]
    tasks = {"sums": own, "other": {key: own[key] for key in ("id", "prompt", "answer")}}
    training = {**asked["training"], "learning_rate": 1.0}  # so that the planes change the answers
    recipe = load_recipe({**asked, "tasks": tasks, "shared": "sums", "training": training})
    run = train(recipe, language_workplace / "shared", progress=False)
    answers = ExactMatchReport.from_json((run.folder / "exact-match.json").read_text()).answers["sums"]
    assert [*answers] == ["__base__", "sums", "sums+other"]
    tokenizer = load_tokenizer(recipe.model)
    prompts = [question.prompt for question in load_questions(recipe, tokenizer)["sums"]]
    bare, _ = load_model(recipe.model, "causal-lm")
    settings = greedy_settings(tokenizer, recipe.scoring.max_new_tokens)
    unrotated = greedy_answers(lambda inputs: bare.generate(**inputs, **settings), tokenizer, prompts, 4, bare)
    assert answers["__base__"] == tuple(answer.text for answer in unrotated) != answers["sums"]


DEFAULTS = {"prompt": TaskRecipe.prompt, "answer": TaskRecipe.answer}
REFUSED = {
    "'tasks.sums.match' must be given together with test": {"test": None},
    "'tasks.sums.match' must be a regular expression": {"match": "("},
    "'tasks.sums.match' must be a regular expression, not 'a{": {"match": "a{4294967296}"},
    "'tasks.sums.reference' must be given together with test": {"test": None, "match": None, "reference": "{{ question }}"},
    "'tasks.sums.test' must be given together with id": {"id": None, "behaviour": "label", **DEFAULTS},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_tested_is_refused(asked, message):
    wrong = {**asked, "tasks": {"sums": {**asked["tasks"]["sums"], **REFUSED[message]}}}
    with pytest.raises(InputError, match=message):
        load_recipe(wrong)


BROKEN = {
    "template: 'input' is undefined; its only variable is `prompt`": {"template": "{{ prompt }} {{ input }}"},
    "task 'sums': a template fails .division by zero.": {"tasks.sums.reference": "{{ 1 / 0 }}"},
    "task 'sums': a template fails .object of type 'int' has no len": {"tasks.sums.answer": "{{ 3 | length }}"},
    "task 'sums': a template fails .'int' object has no attribute 'splitlines'": {"tasks.sums.answer": "{{ 3 | wordwrap(5) }}"},
    "task 'sums': a template fails .expected length": {"tasks.sums.answer": "{{ 'abc' | truncate(-1) }}"},
    "task 'sums': a template fails .at least one item": {"tasks.sums.answer": "{{ cycler() }}"},
    "task 'sums': row 0 of .* has .ud83d, half of a character": {"tasks.sums.answer": "{{ '\\ud83d' }}"},
    "model.max_length 4 is too small for a prompt": {"model.max_length": 4},
}


@pytest.mark.parametrize("message", BROKEN)
def test_templates_that_fail_are_told_before_anything_is_written(asked, tmp_path, message):
    recipe = load_recipe(asked, [f"{key}={value!r}" for key, value in BROKEN[message].items()])
    with pytest.raises(InputError, match=message):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_half_of_a_character_in_the_template_is_refused(asked, tmp_path):
    recipe = load_recipe(asked, [r'template="\ud83d {{ prompt }}"'])  # as an emoji in JSON, of which YAML makes two halves
    with pytest.raises(InputError, match="template: it has .ud83d, half of a character"):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_questions_are_prompts_in_the_template_and_what_their_references_say(asked):
    recipe = load_recipe(asked, ["template='Q: {{ prompt }}'"])
    questions = load_questions(recipe, load_tokenizer(recipe.model))
    assert questions["sums"][:3] == [Question(f"Q: What is {number}?", str(number)) for number in range(3)]
    assert len(questions["sums"]) == 4


def test_a_recipe_that_tests_nothing_has_no_scores(asked, language_workplace):
    untested = {**asked, "tasks": {"sums": {**asked["tasks"]["sums"], "test": None, "match": None}}}
    run = train(load_recipe(untested), language_workplace / "untested", progress=False)
    with pytest.raises(InputError, match="the tasks of the recipe have no test data"):
        evaluate(run, progress=False)


def test_a_reference_that_says_nothing_is_refused_before_training(asked, tmp_path):
    wrong = {**asked, "tasks": {"sums": {**asked["tasks"]["sums"], "reference": "{{ question[0] }}"}}}
    with pytest.raises(InputError, match="task 'sums': .* matches nothing in the reference 'W' of"):
        train(load_recipe(wrong), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
