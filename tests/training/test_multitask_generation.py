"""Multi-task generation: a tiny Llama with a real tokeniser, end to end."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from helpers.cli import run
from helpers.compositions import composition_report
from helpers.multitask import behaviours_recipe as recipe_for
from helpers.taught import word_tokenizer
from road_interp.data.batches import text_batches
from road_interp.data.behaviours import PARTS, Review
from road_interp.data.multitask import (
    Example,
    encode_multitask_data,
    format_prompts,
    load_multitask_data,
    load_reviews,
    warn_of_long_answers,
)
from road_interp.errors import InputError
from road_interp.measure.composition import CompositionReport
from road_interp.measure.drift import drift
from road_interp.measure.perplexity import answer_perplexity
from road_interp.models.generation import Answer, greedy_answers, make_generator
from road_interp.models.hidden_states import text_token
from road_interp.models.loading import load_model, load_tokenizer
from road_interp.progress import silent
from road_interp.recipes.loader import load_recipe
from road_interp.recipes.schema import ModelRecipe, MultiTaskGenerationRecipe, ScoringRecipe
from road_interp.runs.run import Run
from road_interp.training import composition_baselines, multitask_generation
from road_interp.training.api import evaluate, train
from road_interp.training.composition_baselines import low_rank
from road_interp.training.multitask_generation import GenerationTrainer, MultiTaskGenerationExperiment, method_label
from road_interp.training.multitask_trainer import MultiTaskTrainer
from road_interp.training.scoring import GenerationScorer, make_scorer
from road_interp.training.study import Piece, find_study

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def workplace(language_workplace):
    return language_workplace


@pytest.fixture(scope="module")
def finished(workplace):
    return train(recipe_for(workplace), workplace / "run", progress=False)


def test_a_run_folder_holds_all_files_and_is_loaded(workplace, finished):
    names = {path.name for path in (workplace / "run").iterdir()}
    scores = {"composition.json", "metrics.json"}
    assert names == {"recipe.yaml", "planes.json", "adapter", *scores, "log.jsonl", "environment.json", "origin.json"}
    again = Run.load(workplace / "run")
    assert isinstance(again.recipe, MultiTaskGenerationRecipe)
    assert again.planes.tasks == ("label", "closing")
    assert again.metrics["parameters"]["adapter"] == 64
    report = CompositionReport.from_json((workplace / "run" / "composition.json").read_text())
    assert len(report.of("label+closing").answers) == 6
    assert evaluate(again) == again.metrics["test"]
    moved = [again.adapter.angles(site).abs() > 0 for site in again.adapter.sites]
    assert all(mask.all() for mask in moved)
    with pytest.raises(InputError, match="several tasks are scored on the test prompts of their recipe"):
        evaluate(again, "other.csv")


def test_the_parameters_are_those_that_are_trained(workplace, finished, tmp_path):
    options = ("adapter.trainable=magnitudes", "training.max_steps=1")
    run = train(recipe_for(workplace, *options), tmp_path / "magnitudes", progress=False)
    assert finished.metrics["parameters"] == {"adapter": finished.adapter.num_parameters}
    assert run.metrics["parameters"] == {"adapter": finished.adapter.num_parameters // 2}


def test_a_run_of_plain_answers_alone_has_nothing_to_score(workplace, tmp_path):
    options = ("tasks={one: {behaviour: plain, examples: 8}}", "training.max_steps=1")
    run = train(recipe_for(workplace, *options), tmp_path / "plain", progress=False)
    assert "test" not in run.metrics
    with pytest.raises(InputError, match="the tasks of the recipe have no test data"):
        evaluate(run, progress=False)


def test_a_resumed_run_gives_the_same_bits(workplace, finished, monkeypatch):
    recipe, save = recipe_for(workplace), GenerationTrainer._save_checkpoint

    def interrupt(self, *arguments, **options):
        save(self, *arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(GenerationTrainer, "_save_checkpoint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, workplace / "stopped", progress=False)
    monkeypatch.undo()
    resumed = train(recipe, workplace / "stopped", resume=True, progress=False)
    assert resumed.metrics == finished.metrics
    for site in finished.adapter.sites:
        assert torch.equal(resumed.adapter.theta[site.name], finished.adapter.theta[site.name])


@pytest.mark.parametrize(("probability", "together"), [(0.0, {"label", "closing"}), (1.0, {"label+closing"})])
def test_co_activation_decides_what_else_is_active(workplace, tmp_path, monkeypatch, probability, together):
    seen = []
    forward = multitask_generation.RoadModel.forward

    def spy(self, base, **options):
        seen.append((options["tasks"], options["trainable_tasks"]))
        return forward(self, base, **options)

    monkeypatch.setattr(multitask_generation, "score_composition", lambda *arguments: composition_report())
    monkeypatch.setattr(CompositionReport, "summary", lambda self: {})
    monkeypatch.setattr(multitask_generation.RoadModel, "forward", spy)
    train(recipe_for(workplace, f"co_activation={probability}", "training.epochs=1"), tmp_path / "run", progress=False)
    assert {task for tasks, _ in seen for task in tasks} == together
    assert {task for _, trained in seen for task in trained} == {"label", "closing"}


def set_side(tokenizer, side):
    tokenizer.padding_side = side
    return tokenizer


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_are_the_prompts_and_the_loss_is_the_models_own(workplace, tmp_path, monkeypatch, side):
    calls = []
    call, forward = GenerationTrainer.call, multitask_generation.RoadModel.forward

    def spy_on_call(self, model, inputs):
        calls.append({"inputs": inputs})
        with torch.random.fork_rng():
            output = call(self, model, inputs)
        calls[-1]["loss"] = output.loss.item()
        batch = {key: inputs[key] for key in ("input_ids", "attention_mask", "labels")}
        calls[-1]["own"] = forward(model, batch, **calls[-1]["options"])[1].loss.item()
        return call(self, model, inputs)

    def spy_on_forward(self, base, **options):
        calls[-1]["options"] = options
        return forward(self, base, **options)

    monkeypatch.setattr(GenerationTrainer, "call", spy_on_call)
    monkeypatch.setattr(multitask_generation.RoadModel, "forward", spy_on_forward)
    recipe = recipe_for(workplace, "adapter.positions=f1+l1", "training.max_steps=2", "co_activation_loss=all")
    monkeypatch.setattr(multitask_generation, "NEUTRAL", 1.0)
    load = multitask_generation.load_text_tokenizer
    monkeypatch.setattr(multitask_generation, "load_text_tokenizer", lambda recipe: set_side(load(recipe), side))
    monkeypatch.setattr(multitask_generation, "score_composition", lambda *arguments: composition_report())
    monkeypatch.setattr(CompositionReport, "summary", lambda self: {})
    train(recipe, tmp_path / "run", progress=False)
    assert len(calls) == 2
    for each in calls:
        mask = each["inputs"]["attention_mask"]
        assert mask[:, 0 if side == "left" else -1].min() == 0
        lengths = (mask * (each["inputs"]["labels"] == -100)).sum(1).tolist()
        assert each["options"]["positions"] == [[0, length - 1] for length in lengths]
        assert each["loss"] == pytest.approx(each["own"], rel=1e-5)


def test_tasks_whose_behaviours_are_of_one_part_decide_that_part():
    trainer = object.__new__(GenerationTrainer)
    trainer._parts = {"label": 4, "german": 8, "capitals": 8, "closing": 16}
    decides = torch.tensor([[4, 8, 16]])
    assert trainer._decided_by(["german+capitals"], decides).tolist() == [[False, True, False]]
    assert trainer._decided_by(["closing+capitals+german"], decides).tolist() == [[False, True, True]]
    assert trainer._decided_by([""], decides).tolist() == [[False, False, False]]


def test_no_review_is_used_twice_and_labels_cover_the_answer(workplace):
    recipe = recipe_for(workplace)
    loaded = load_multitask_data(recipe)
    texts = [review.text for review in (*loaded.validation, *loaded.test)]
    texts += [example.prompt for examples in loaded.examples.values() for example in examples]
    assert len(texts) == len(set(texts)) == 4 + 6 + 32
    assert {review.label == ("positive" if "good" in review.text else "negative") for review in loaded.test} == {True}
    tokenizer = load_tokenizer(recipe.model)
    rows = encode_multitask_data(loaded.examples, tokenizer, recipe)
    assert rows["task"] == [0] * 16 + [1] * 16
    for row, example in ((rows[0], loaded.examples["label"][0]), (rows[16], loaded.examples["closing"][0])):
        assert tokenizer.decode([label for label in row["labels"] if label != -100]) == example.answer + tokenizer.eos_token
        assert tokenizer.decode(row["input_ids"]).startswith(f"Q: {example.prompt}\nA:")
    assert load_multitask_data(recipe) == loaded


def test_held_out_reviews_that_are_trained_on_are_warned_of(workplace, tmp_path):
    recipe = recipe_for(workplace)
    header, *rows = Path(recipe.reviews.id).read_text().splitlines()
    (tmp_path / "twice.csv").write_text("\n".join([header, *rows, *rows]) + "\n")
    twice = replace(recipe, reviews=replace(recipe.reviews, id=str(tmp_path / "twice.csv")))
    with pytest.warns(UserWarning, match=r"twice.csv': \d+ of 10 validation and test reviews are also training reviews"):
        load_multitask_data(twice)


def answering(path, **options):
    task = {"id": str(path), "examples": 2, **options}
    return load_recipe({"kind": "multitask-generation", "model": {"id": "m"}, "tasks": {"sums": task}, "scoring": {"test": 2}})


@pytest.mark.parametrize(
    "answers", [["0000", "0001"], ["0.50", "1.50"], ["true", "false"], ["2020-01-01", "2020-01-02"], ["1", "2"]]
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_answers_are_those_of_the_file(tmp_path, answers, suffix):
    rows = [json.dumps({"prompt": "p", "answer": answer}) for answer in answers]
    lines = rows if suffix == "jsonl" else ["prompt,answer", *(f"p,{answer}" for answer in answers)]
    (tmp_path / f"data.{suffix}").write_text("\n".join(lines) + "\n")
    examples = load_multitask_data(answering(tmp_path / f"data.{suffix}")).examples
    assert [example.answer for example in examples["sums"]] == answers


def test_numbers_of_json_are_printed_as_they_are_written(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"prompt": "5 / 2", "answer": 2.5}\n{"prompt": "2 + 3", "answer": 5}\n')
    examples = load_multitask_data(answering(tmp_path / "data.jsonl")).examples
    assert [example.answer for example in examples["sums"]] == ["2.5", "5"]
    doubled = answering(tmp_path / "data.jsonl", answer="{{ answer * 2 }} is {% if answer > 3 %}more{% else %}less{% endif %}")
    assert [example.answer for example in load_multitask_data(doubled).examples["sums"]] == ["5.0 is less", "10 is more"]


def test_lists_and_objects_of_json_are_printed_as_they_are_written(tmp_path):
    answers = ['{"city": "Paris"}', '{"sum": [2, 2.5]}']
    (tmp_path / "data.jsonl").write_text("".join(f'{{"prompt": "p", "answer": {answer}}}\n' for answer in answers))
    examples = load_multitask_data(answering(tmp_path / "data.jsonl", answer="{{ answer|tojson }}")).examples
    assert [example.answer for example in examples["sums"]] == answers


def test_a_value_that_a_row_lacks_is_not_the_text_none(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c"}\n')
    with pytest.raises(InputError, match="task 'sums': a template fails \\(a value is null: leave the row out"):
        load_multitask_data(answering(tmp_path / "data.jsonl"))


@pytest.mark.parametrize("printed", ["answer|trim", "answer ~ '.'", "'It is %s' % answer", "[answer]|join", "{}.get('a')"])
def test_a_null_has_no_text_in_filters_either(tmp_path, printed):
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": null}\n')
    with pytest.raises(InputError, match="task 'sums': a template fails \\(a value is null: leave the row out"):
        load_multitask_data(answering(tmp_path / "data.jsonl", answer=f"{{{{ {printed} }}}}"))


@pytest.mark.parametrize("test", ["answer or 'u'", "'u' if answer is none else answer", "answer if answer != none else 'u'"])
def test_a_null_can_be_replaced(tmp_path, test):
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": null}\n')
    examples = load_multitask_data(answering(tmp_path / "data.jsonl", answer=f"{{{{ {test} }}}}")).examples
    assert [example.answer for example in examples["sums"]] == ["b", "u"]


def test_a_null_is_null_in_json(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "answer": {"b": [null], "c": 1}}\n{"prompt": "c", "answer": null}\n')
    examples = load_multitask_data(answering(tmp_path / "data.jsonl", answer="{{ answer|tojson }}")).examples
    assert [example.answer for example in examples["sums"]] == ['{"b": [null], "c": 1}', "null"]


def test_empty_answers_are_warned_of(tmp_path):
    (tmp_path / "data.csv").write_text("prompt,answer\na,1\nb\n")
    with pytest.warns(UserWarning, match="task 'sums': 1 of 2 answers of '.*data.csv' are empty; leave out these rows"):
        load_multitask_data(answering(tmp_path / "data.csv"))


def test_few_rows_and_questions_that_are_trained_on_are_warned_of(tmp_path):
    (tmp_path / "asked.csv").write_text("prompt,answer\na,1\nb,2\nc,3\n")
    (tmp_path / "other.csv").write_text("prompt,answer\nb,2\nd,4\na,1\n")
    (tmp_path / "new.csv").write_text("prompt,answer\ne,5\n")
    with pytest.warns(UserWarning, match="asked.csv' has 3 rows and all are used; tasks.sums.examples is 4$"):
        load_multitask_data(answering(tmp_path / "asked.csv", examples=4))
    with pytest.warns(UserWarning, match="task 'sums': 1 of 2 test questions of '.*other.csv' are also training prompts"):
        load_multitask_data(answering(tmp_path / "asked.csv", test=str(tmp_path / "other.csv"), match="[0-9]"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_multitask_data(answering(tmp_path / "asked.csv", test=str(tmp_path / "new.csv"), match="[0-9]"))


@pytest.mark.parametrize("swapped", [False, True], ids=["numbers are trained on", "texts are trained on"])
def test_a_column_of_numbers_beside_one_of_texts_is_warned_of_where_a_template_tells_them_apart(tmp_path, swapped):
    (tmp_path / "numbers.csv").write_text("prompt,answer\na,1\nb,0\n")
    (tmp_path / "texts.csv").write_text("prompt,answer\nc,1\nd,none\n")
    train, test = [tmp_path / f"{name}.csv" for name in (("texts", "numbers") if swapped else ("numbers", "texts"))]
    choosing = "{% if answer == 1 %}yes{% else %}no{% endif %}"
    with pytest.warns(UserWarning, match=r"task 'sums': 'answer' is a number in '.*numbers.csv' and text in '.*texts.csv', for"):
        load_multitask_data(answering(train, answer=choosing, test=str(test), match="[a-z]+"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_multitask_data(answering(train, answer="{{ answer }}", test=str(test), match="[0-9a-z]+"))


def test_a_loss_that_is_for_behaviours_is_warned_of_with_tasks_of_data_sets(workplace):
    tokenizer = load_tokenizer(recipe_for(workplace).model)
    task = {"id": str(workplace / "pairs.jsonl"), "prompt": "{{ question }}", "answer": "{{ reply.text }}", "examples": 2}
    with pytest.warns(UserWarning, match="co_activation_loss: own is for built-in behaviours: of the data set of task 'one' all"):
        encode_multitask_data({}, tokenizer, recipe_for(workplace, f"tasks={{'one': {task}, 'two': {task}}}"))
    quiet = (
        recipe_for(workplace),
        recipe_for(workplace, f"tasks={{'one': {task}}}"),
        recipe_for(workplace, f"tasks={{'one': {task}, 'two': {task}}}", "co_activation=0"),
        recipe_for(workplace, f"tasks={{'one': {task}, 'two': {task}}}", "co_activation_loss=all"),
        recipe_for(workplace, f"tasks={{'one': {task}, 'two': {task}}}", "shared=two"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for recipe in quiet:
            encode_multitask_data({}, tokenizer, recipe)


def test_training_answers_that_are_cut_off_are_warned_of(workplace):
    recipe = recipe_for(workplace)
    long = {"label": [Example("fine", (("", "word " * recipe.model.max_length),)), Example("fine", (("", "yes"),))]}
    with pytest.warns(UserWarning, match="1 of 2 training answers are cut off, so that nothing teaches their end"):
        encode_multitask_data(long, load_tokenizer(recipe.model), recipe)


def test_answers_that_are_longer_than_what_is_generated_are_warned_of(workplace):
    tokenizer = load_tokenizer(recipe_for(workplace).model)
    text = "I read your review. This is a positive review. It is about a film. Thank you!"
    needed = len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1  # and the end token
    recipe = recipe_for(workplace, f"scoring.max_new_tokens={needed - 1}", "model.max_length=256")
    data = replace(load_multitask_data(recipe), test=[Review("", "positive", 0)])
    with pytest.warns(UserWarning, match=f"1 of 1 test answers .* set it to {needed} or more"):
        warn_of_long_answers(recipe, data, tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_long_answers(replace(recipe, scoring=replace(recipe.scoring, max_new_tokens=needed)), data, tokenizer)
        warn_of_long_answers(recipe, replace(data, behaviours={}), tokenizer)


def test_answers_are_greedy_whatever_the_settings_of_the_model(finished):
    model, tokenizer = finished.load_model(), load_tokenizer(finished.recipe.model)
    scoring = ScoringRecipe(max_new_tokens=8, batch_size=4)
    answers = make_generator(model, tokenizer, scoring)(["word"] * 2, "label")
    model.model.generation_config.update(repetition_penalty=9.0, no_repeat_ngram_size=1, num_beams=2, do_sample=True)
    assert make_generator(model, tokenizer, scoring)(["word"] * 2, "label") == answers


def test_a_template_without_the_beginning_of_texts_is_warned_of(workplace):
    recipe = recipe_for(workplace)
    tokenizer, told = load_tokenizer(recipe.model), {"label": [Example("fine", (("", "yes"),))]}
    beginning = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{beginning[0]} $A", special_tokens=[beginning])
    with pytest.warns(UserWarning, match="begins texts with '.*', and the template does not, so that the model is trained"):
        encode_multitask_data(told, tokenizer, recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_multitask_data(told, tokenizer, replace(recipe, template=f"{beginning[0]}{recipe.template}"))
        encode_multitask_data(told, load_tokenizer(recipe.model), recipe)


def test_tokens_decide_the_parts_that_they_begin_or_leave_out(workplace):
    recipe = recipe_for(workplace)
    tokenizer = load_tokenizer(recipe.model)

    def decided(*parts):
        """The text of the tokens that decide a set of parts, by set, in order."""
        row = encode_multitask_data({"task": [Example("text", parts)]}, tokenizer, recipe)[0]
        found = {}
        for token, label, bits in zip(row["input_ids"], row["labels"], row["decides"], strict=True):
            if label == -100:
                assert bits == 0
            else:
                names = "+".join(name for place, name in enumerate(PARTS) if bits >> place & 1)
                found[names] = found.get(names, "") + tokenizer.decode([token])
        return {names: text.strip() for names, text in found.items()}

    end = tokenizer.eos_token
    plain = decided(("comment", "It is short."), ("remark", "It is."))
    assert plain.keys() == {"opening+comment", "comment", "label+remark", "remark", "closing"}
    assert plain["closing"] == end
    every = decided(
        ("opening", "Hello!"), ("comment", "It is."), ("label", "Good."), ("remark", "Yes it is."), ("closing", "Bye!")
    )
    assert list(every) == ["opening", "comment", "label", "remark", "closing", ""]
    assert every["opening"] == "Hello!"
    assert every[""] == end
    assert set(decided(("", "Anything."))) == {""}


@pytest.mark.parametrize(("rule", "left_out"), [("own", True), ("all", False)])
def test_with_others_active_only_ones_own_tokens_are_learned(workplace, monkeypatch, tmp_path, rule, left_out):
    seen = []
    call, forward = GenerationTrainer.call, multitask_generation.RoadModel.forward

    def spy_on_call(self, model, inputs):
        seen.append((inputs, call(self, model, inputs)))
        return seen[-1][1]

    def spy_on_forward(self, base, **options):
        spy_on_forward.kept = base["logits_to_keep"]
        return forward(self, base, **options)

    monkeypatch.setattr(GenerationTrainer, "call", spy_on_call)
    monkeypatch.setattr(multitask_generation.RoadModel, "forward", spy_on_forward)
    monkeypatch.setattr(multitask_generation, "score_composition", lambda *arguments: composition_report())
    monkeypatch.setattr(CompositionReport, "summary", lambda self: {})
    overrides = ("co_activation=1.0", f"co_activation_loss={rule}", "training.max_steps=1", "training.batch_size=32")
    train(recipe_for(workplace, *overrides), tmp_path / "run", progress=False)
    ((inputs, output),) = seen
    other = {0: 1 << PARTS.index("closing"), 1: 1 << PARTS.index("label")}
    labels = inputs["labels"].clone()
    for row, task in enumerate(inputs["task"].tolist()):
        masked = inputs["decides"][row] & other[task] != 0
        assert masked.any()
        labels[row, masked & left_out] = -100
    columns = (labels[:, 1:] != -100).any(0).nonzero().flatten()
    assert torch.equal(columns, spy_on_forward.kept)
    own = torch.tensor([other[1 - task] for task in inputs["task"].tolist()])  # the part of the example's own task
    weights = torch.where(inputs["decides"] & own[:, None] != 0, 1.0, 0.3)[:, columns + 1]
    total = sum(
        weights[row, place] * -output.logits[row, place].log_softmax(-1)[label]
        for row, of_row in enumerate(labels[:, columns + 1].tolist())
        for place, label in enumerate(of_row)
        if label != -100
    )
    assert output.loss.item() == pytest.approx((total / weights[labels[:, columns + 1] != -100].sum()).item(), rel=1e-5)


def test_the_distilled_target_is_computed_without_dropout(workplace, monkeypatch, tmp_path):
    modes = []
    forward = multitask_generation.RoadModel.forward

    def spy(self, base, **options):
        modes.append((torch.is_grad_enabled(), {module.training for module in self.modules()}))
        return forward(self, base, **options)

    monkeypatch.setattr(multitask_generation.RoadModel, "forward", spy)
    monkeypatch.setattr(multitask_generation, "score_composition", lambda *arguments: composition_report())
    monkeypatch.setattr(CompositionReport, "summary", lambda self: {})
    overrides = ("co_activation=1.0", "co_activation_loss=distilled", "training.max_steps=2")
    train(recipe_for(workplace, *overrides), tmp_path / "run", progress=False)
    assert modes == [(True, {True}), (False, {False})] * 2


def trainer_of(*tasks, co_activation, warmup=0.0, shared=None):
    """A trainer of 100 steps without model and data, in its first step."""
    trainer = object.__new__(MultiTaskTrainer)
    trainer._tasks, trainer._co_activation, trainer._warmup, trainer._shared = tasks, co_activation, warmup, shared
    trainer.args, trainer.accelerator = SimpleNamespace(process_index=0), SimpleNamespace(gather=lambda rows: rows)
    trainer.state = SimpleNamespace(global_step=0, max_steps=100)
    return trainer


def test_several_others_are_activated_in_random_sets():
    trainer = trainer_of("a", "b", "c", "s", co_activation=1.0, shared="s")
    torch.manual_seed(0)
    own, active = trainer.active(torch.tensor([0, 3] * 300))
    assert own == ["a", "s"] * 300
    assert set(active[1::2]) == {"s"}  # the shared task learns alone
    counts = Counter(active[::2])
    assert set(counts) == {"a+b+s", "a+c+s", "a+b+c+s"}
    assert min(counts.values()) > 70
    trainer._co_activation = 0.0
    assert set(trainer.active(torch.tensor([0, 1]))[1]) == {"a+s", "b+s"}


def test_co_activation_rises_from_0_in_its_warm_up():
    trainer = trainer_of("a", "b", co_activation=0.8, warmup=0.5)
    torch.manual_seed(0)
    for step, expected in ((0, 0.0), (25, 0.4), (50, 0.8), (99, 0.8)):
        trainer.state.global_step = step
        active = trainer.active(torch.zeros(2000, dtype=torch.long))[1]
        assert active.count("a+b") / 2000 == pytest.approx(expected, abs=0.05)


def test_two_processes_draw_what_one_draws_for_their_rows():
    """Also of three tasks, where a row whose others are active draws which."""
    trainer = trainer_of("a", "b", "c", co_activation=0.5)
    rows = torch.tensor([0, 1, 2, 0] * 4)

    def drawn(of_process, process_index):
        trainer.args, trainer.accelerator.gather = SimpleNamespace(process_index=process_index), lambda _: rows
        torch.manual_seed(0)
        own, active = trainer.active(of_process)
        assert own == ["abc"[index] for index in of_process.tolist()]
        return active, torch.get_rng_state()

    (first, state), (second, other) = (drawn(half, index) for index, half in enumerate(rows.split(8)))
    assert len({*first, *second}) > 4
    assert first + second == drawn(rows, 0)[0]
    assert state.equal(other)  # so that they draw alike in the next step, too


def test_a_shared_task_is_active_in_every_answer_and_is_not_scored(workplace, tmp_path):
    tasks = "tasks={plain: {behaviour: plain, examples: 8}, label: {behaviour: label, examples: 8}}"
    run = train(recipe_for(workplace, tasks, "shared=plain"), tmp_path / "run", progress=False)
    assert run.planes.tasks == ("plain", "label")
    assert run.composition.tasks == ("label",)
    assert [score.active for score in run.composition.scores] == ["__base__", "label"]
    model = run.load_model()
    generate = make_generator(model, load_tokenizer(run.recipe.model), run.recipe.scoring)
    data = load_multitask_data(run.recipe)
    prompts = format_prompts(run.recipe, [review.text for review in data.test], load_tokenizer(run.recipe.model))
    for active, names in (("__base__", "plain"), ("label", "plain+label")):
        assert tuple(answer.text for answer in generate(prompts, names)) == run.composition.of(active).answers
    with pytest.raises(InputError, match="'shared' must be the name of one of the tasks"):
        recipe_for(workplace, "shared=other")
    with pytest.raises(InputError, match="'shared' must be a task of plain answers or of a data set: a behaviour is scored"):
        recipe_for(workplace, "shared=label")  # which would be active in the sets that are scored without it


def test_a_tokeniser_without_an_end_of_text_is_refused(workplace, monkeypatch):
    monkeypatch.setattr(multitask_generation, "load_text_tokenizer", lambda recipe: word_tokenizer())
    with pytest.raises(InputError, match="has no end token, with which answers end: give it an eos_token"):
        MultiTaskGenerationExperiment(recipe_for(workplace))


def test_tasks_from_data_use_their_templates(workplace):
    pairs = {"id": str(workplace / "pairs.jsonl"), "prompt": "{{ question }}", "answer": "{{ reply.text }}", "examples": 5}

    def recipe_with(**changes):
        return load_recipe({"kind": "multitask-generation", "model": {"id": "m"}, "tasks": {"reply": {**pairs, **changes}}})

    loaded = load_multitask_data(recipe_with())
    assert loaded.examples["reply"][2] == Example("What is 2?", (("", "It is 2."),))
    assert len(loaded.examples["reply"]) == 5
    assert not loaded.behaviours
    with pytest.raises(
        InputError, match="task 'reply': a template fails \\('answer' is undefined\\); the columns .* question, reply"
    ):
        load_multitask_data(recipe_with(answer="{{ answer }}"))
    with pytest.raises(InputError, match="unsafe"):
        load_multitask_data(recipe_with(answer="{{ ''.__class__.__mro__ }}"))


def test_short_prompts_are_read_as_they_are(workplace):
    """The text of their tokens is another where a tokeniser splits at spaces or lowers letters."""
    asked = ["word of\n word", " word  word "]
    assert format_prompts(recipe_for(workplace), asked, word_tokenizer("word of")) == [f"Q: {each}\nA:" for each in asked]


def test_long_prompts_are_cut_before_the_template(workplace):
    recipe = recipe_for(workplace, "model.max_length=20")
    tokenizer = load_tokenizer(recipe.model)
    with pytest.warns(UserWarning, match=r"1 of 2 prompts are cut to \d+ tokens: .* set model.max_length to \d+$") as told:
        prompt, short = format_prompts(recipe, ["word " * 100, "word"], tokenizer)
    whole = recipe_for(workplace, f"model.max_length={str(told[0].message).split()[-1]}")
    assert format_prompts(whole, ["word " * 100], tokenizer) == [f"Q: {'word ' * 100}\nA:"]
    assert short == "Q: word\nA:"
    assert prompt.startswith("Q: word word")
    assert prompt.endswith("\nA:")
    assert len(tokenizer(prompt)["input_ids"]) <= 16
    with pytest.raises(InputError, match="is too small for a prompt"):
        format_prompts(recipe_for(workplace, "model.max_length=5"), ["word"], tokenizer)


def test_answers_and_their_perplexity(workplace):
    tokenizer = load_tokenizer(ModelRecipe(str(workplace / "model")))
    base = MultiTaskGenerationExperiment(recipe_for(workplace)).build_model(torch.device("cpu")).model.eval()
    prompts = ["One two three", "One"]

    def ids_of(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def generate(inputs, end):
        assert inputs["attention_mask"][1 - inputs["attention_mask"].sum(1).argmax(), 0] == 0  # padded on the left
        answer = [*ids_of(" yes"), end, 5]
        return torch.cat([inputs["input_ids"], torch.tensor([answer] * 2)], 1)

    (other,) = ids_of("<|im_start|>")
    for end, also, expected in (
        (tokenizer.eos_token_id, None, ("yes", True)),
        (other, [other], ("yes", True)),
        (other, [tokenizer.eos_token_id, other], ("yes", True)),
        (tokenizer.eos_token_id, other, ("yes", True)),
        (5, other, (tokenizer.decode([*ids_of(" yes"), 5, 5], skip_special_tokens=True).strip(), False)),
    ):
        base.generation_config.eos_token_id = also
        answers = greedy_answers(partial(generate, end=end), tokenizer, prompts, 2, base)
        assert [(answer.text, answer.finished) for answer in answers] == [expected] * 2
    perplexity = answer_perplexity(base, tokenizer)(prompts, ["yes no", "no"])
    losses = []
    for prompt, answer in zip(prompts, ["yes no", "no"], strict=True):
        prompt_ids, answer_ids = ids_of(prompt), [*ids_of(answer), tokenizer.eos_token_id]
        ids = torch.tensor([prompt_ids + answer_ids])
        with torch.no_grad():
            log_probabilities = base(input_ids=ids).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
        losses += [-log_probabilities[step, token].item() for step, token in enumerate(answer_ids)]
    assert perplexity == pytest.approx(torch.tensor(losses).mean().exp().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("co_activation=1.5", "'co_activation' must be a probability"),
        ("co_activation_warmup=2", "'co_activation_warmup' must be a fraction of the steps"),
        ("tasks.label.learning_rate=0", "'tasks.label.learning_rate' must be positive"),
        ("template=hello", "'template' must be a text that contains {{ prompt }}"),
        ("tasks.label.behaviour=rude", "unknown behaviour 'rude'"),
        ("tasks.label.id=x.csv", "'tasks.label.behaviour' must be given if id is not, and left out if it is"),
        ("tasks.label.examples=0", "'tasks.label.examples' must be at least 1"),
        ("tasks.label.speed=1", "unknown key 'tasks.label.speed'"),
        ("tasks=3", "'tasks' must be a mapping"),
        ("tasks.label.examples=100", "126 reviews are needed, .* has 60"),
        ("planes=diagonal", "'planes' must be 'shares' or 'alternating'"),
        ("reviews=null", "'reviews' must be given: the behaviour of task 'label' is trained on them"),
    ],
)
def test_wrong_recipes_are_refused(workplace, override, message):
    with pytest.raises(InputError, match=message):
        load_multitask_data(recipe_for(workplace, override))


BASELINES = ["LoRA", "LoReFT", "undivided", "adapter_per_set", "multiplied", "instruction"]


@pytest.mark.parametrize("baseline", BASELINES)
def test_baselines_of_the_composition(workplace, tmp_path, baseline):
    recipe = recipe_for(workplace, "adapter.layers=0", f"training.max_steps={1 if baseline == 'adapter_per_set' else 2}")
    piece = Piece(recipe, "both", recipe.seed, tmp_path / "runs", silent)
    if baseline.startswith("Lo"):
        report = composition_baselines.low_rank(piece, baseline)
    else:
        report = getattr(composition_baselines, baseline)(piece)
    assert CompositionReport.from_json(report.to_json()) == report
    assert [score.active for score in report.scores] == ["__base__", "label", "closing", "label+closing"]
    assert all(len(score.answers) == 6 for score in report.scores)
    if baseline == "undivided":
        assert len({score.answers for score in report.scores[1:]}) == 1
    if baseline == "multiplied":
        runs = [Run.load(folder) for folder in (tmp_path / "runs").iterdir()]
        alone = {"+".join(run.recipe.tasks): run.adapter for run in runs}
        assert set(alone) == {"label", "closing"}
        assert [task.examples for run in runs for task in run.recipe.tasks.values()] == [32, 32]
        assert alone["label"].distance(alone["closing"]) > 0


def test_an_adapter_per_set_needs_as_many_reviews_as_the_tasks_have_examples(workplace, tmp_path, monkeypatch):
    recipe = recipe_for(workplace, "adapter.layers=0", "training.max_steps=1")
    reviews = load_reviews(recipe.reviews)
    held_out = recipe.scoring.validation + recipe.scoring.test
    monkeypatch.setattr(composition_baselines, "load_reviews", lambda recipe: reviews[: held_out + 31])
    with pytest.raises(InputError, match="needs 32 training reviews, one per example of the tasks, not 31"):
        composition_baselines.adapter_per_set(Piece(recipe, "both", 0, tmp_path / "runs", silent))


def test_divided_planes_without_a_run_folder_score_as_their_run(workplace, tmp_path):
    piece = Piece(recipe_for(workplace, "adapter.layers=0", "training.max_steps=2"), "both", 1, tmp_path / "runs", silent)
    report = composition_baselines.planes(piece)
    assert not (tmp_path / "runs").exists()
    assert report == replace(composition_baselines.trained(piece), provenance=report.provenance)


@pytest.mark.parametrize("method", ["planes", "undivided", "LoRA"])
def test_validation_reviews_are_scored_where_the_split_says_so(workplace, tmp_path, monkeypatch, method):
    recipe = recipe_for(workplace, "adapter.layers=0", "training.max_steps=1", "scoring.validation=3")
    piece = Piece(recipe, "both", 0, tmp_path / "runs", silent)
    scored = []
    kept = composition_baselines.composition

    def composition(generate, perplexity, tasks, reviews, *rest):
        scored.append(reviews)
        return kept(generate, perplexity, tasks, reviews, *rest)

    for module in (composition_baselines, multitask_generation):
        monkeypatch.setattr(module, "composition", composition)
    if method == "LoRA":
        composition_baselines.low_rank(piece, method, split="validation")
    else:
        getattr(composition_baselines, method)(piece, split="validation")
    assert scored == [load_multitask_data(recipe).validation]


@pytest.mark.parametrize("tasks", [2, 3])
def test_the_undivided_baseline_can_leave_other_tasks_out_of_its_loss(workplace, tmp_path, tasks):
    """With two tasks a random set of others is all others; with three these are different trainings."""
    third = {2: [], 3: ["tasks.greeting={behaviour: greeting, examples: 16}"]}[tasks]
    recipe = recipe_for(workplace, *third, "adapter.layers=0", "training.max_steps=4", "training.learning_rate=0.3")
    piece = Piece(recipe, "both", recipe.seed, tmp_path / "runs", silent)
    reports = [composition_baselines.undivided(piece, left_out) for left_out in ("none", "drawn", "all")]
    assert len({report.scores[-1].perplexity for report in reports}) == tasks
    last = piece._replace(recipe=replace(recipe, adapter=replace(recipe.adapter, positions="last")))
    with pytest.raises(InputError, match="left out of the loss need adapter.positions=all, not last"):
        composition_baselines.undivided(last, "all")


def test_divided_planes_can_leave_other_tasks_out_of_every_loss(workplace, tmp_path):
    """Which changes nothing where the other of two tasks is active in every example."""
    for co_activation, equal in ((1.0, True), (0.0, False)):
        given = ("adapter.layers=0", "training.max_steps=4", "training.learning_rate=0.3", f"co_activation={co_activation}")
        recipe = recipe_for(workplace, *given)
        piece = Piece(recipe, "both", recipe.seed, tmp_path / "runs", silent)
        reports = [composition_baselines.planes(piece, others_left_out=left_out) for left_out in (False, True)]
        assert (reports[0] == replace(reports[1], provenance=reports[0].provenance)) == equal
    last = piece._replace(recipe=replace(recipe, adapter=replace(recipe.adapter, positions="last")))
    with pytest.raises(InputError, match="left out of the loss need adapter.positions=all, not last"):
        composition_baselines.planes(last, others_left_out=True)


def test_tokens_that_decide_parts_of_other_tasks_are_left_out(workplace, tmp_path):
    """What is left in the loss: the own part, and tokens that no task's part depends on."""
    recipe = recipe_for(workplace, "tasks.greeting={behaviour: greeting, examples: 16}")
    experiment = composition_baselines._OwnTokensOnly(recipe)
    experiment.load_data()
    cpu = torch.device("cpu")
    trainer = experiment.make_trainer(experiment.build_model(cpu), tmp_path, cpu, progress=False, save_strategy="no")
    for row in trainer.train_dataset.to_list():
        answer = [place for place, decided in enumerate(row["decides"]) if decided]
        own = experiment.parts[recipe.task_names[row["task"]]]
        others = sum(experiment.parts.values()) - own
        kept = [place for place in answer if row["labels"][place] != -100]
        assert kept == [place for place in answer if not row["decides"][place] & others]
        assert any(row["decides"][place] & own for place in kept)
        assert kept != answer


def test_the_strength_of_a_learned_behaviour(workplace, tmp_path):
    recipe = recipe_for(workplace, "tasks={closing: {behaviour: closing, examples: 16}}")
    piece, study = Piece(recipe, "closing", recipe.seed, tmp_path / "runs", silent), find_study("strength")
    report = study.measure(piece)
    (folder,) = (tmp_path / "runs").iterdir()
    scores = CompositionReport.load(folder / "composition.json")
    shown = dict(zip(report.strengths, report.shown, strict=True))
    assert (shown[0.0], shown[1.0]) == tuple(scores.of(active).shown["closing"] for active in ("__base__", "closing"))
    with pytest.raises(InputError, match="the strength study needs a recipe with one task, not 2"):
        study.measure(piece._replace(recipe=recipe_for(workplace)))


def test_drift_beside_a_run_reads_texts_in_the_template_of_its_training(workplace, tmp_path, finished, monkeypatch, capsys):
    texts, recipe = ["a warm film", "two long hours"], finished.recipe
    (tmp_path / "texts.csv").write_text("\n".join(["text", *texts]) + "\n")
    code, out, err = run(capsys, monkeypatch, "drift", recipe.model.id, finished.folder, tmp_path / "texts.csv", "--json")
    assert code == 0, err
    tokenizer = load_tokenizer(recipe.model)
    found = []
    for prompts in (format_prompts(recipe, texts, tokenizer), texts):
        batches = text_batches(prompts, tokenizer, recipe.model.max_length, add_special_tokens=False)
        report = drift(load_model(recipe.model)[0], finished.load_model(), batches, text_token(tokenizer))
        found.append([place.angle[0] for place in report.places])
    told = [place["angle"][0] for place in json.loads(out)["places"]]
    assert told == pytest.approx(found[0], abs=1e-6)
    assert told != pytest.approx(found[1], abs=1e-3)


def test_the_command_line_prints_the_composition(workplace, finished, monkeypatch, capsys):
    code, printed, err = run(capsys, monkeypatch, "evaluate", finished.folder)
    assert code == 0, err
    assert "6 prompts" in printed
    assert "label+closing" in printed


def test_answers_are_scored_with_any_adapter(finished, monkeypatch):
    scorer = make_scorer(str(finished.folder))
    assert isinstance(scorer, GenerationScorer)
    scores = finished.composition
    right = scorer(finished.adapter)
    assert right.tolist() == scores.of("label+closing").joint(["label", "closing"]).tolist()
    answers = [answer.text for answer in scorer.answers(finished.adapter)]
    assert answers == list(scores.of("label+closing").answers)
    bare = [answer.text for answer in scorer.answers(finished.adapter**0)]
    assert bare == list(scores.of("__base__").answers)
    assert bare != answers
    assert [answer.text for answer in GenerationScorer(finished, 2).answers(finished.adapter)] == answers[:2]
    good = SimpleNamespace(is_right=lambda answer, review: review.label == "positive")
    first = SimpleNamespace(is_right=lambda answer, review: review is scorer.reviews[0])
    monkeypatch.setattr(scorer, "answers", lambda adapter: [Answer("", True)] * 6)
    labels = [review.label == "positive" for review in scorer.reviews]
    assert len(set(labels)) == 2
    for behaviours, expected in (({"good": good}, labels), ({"good": good, "first": first}, [labels[0], *[False] * 5])):
        scorer.behaviours = behaviours
        assert scorer(finished.adapter).tolist() == expected


def test_a_run_without_behaviours_has_no_single_score(workplace, tmp_path, capsys, monkeypatch):
    """No answer could be wrong."""
    plain = recipe_for(workplace, "tasks={chat: {behaviour: plain, examples: 8}}", "training.max_steps=1")
    finished = train(plain, tmp_path / "run", progress=False)
    for use in (make_scorer, GenerationScorer):
        with pytest.raises(InputError, match="only runs with one head, or with behaviours on reviews|not a run of behaviours"):
            use(finished)
    for command, message in (("ablate", "has no single score"), ("diagnose", "there is nothing to check")):
        code, out, err = run(capsys, monkeypatch, command, tmp_path / "run")
        assert (code, out) == (2, "")
        assert message in err.splitlines()[-1]


def test_a_run_of_behaviours_is_ablated_and_diagnosed(finished, tmp_path, capsys, monkeypatch):
    folder = str(finished.folder)
    code, out, err = run(capsys, monkeypatch, "ablate", folder, "--limit", 2, "--by", "planes", "--out", tmp_path, "--json")
    assert code == 0, err
    assert {row["group"] for row in json.loads(out)["summary"]} == {"components", "most rotated", "random planes"}
    content = json.loads((tmp_path / "ablation.json").read_text())
    assert (content["metric"], content["task"]) == ("all in one answer", "label+closing")
    code, out, err = run(capsys, monkeypatch, "diagnose", folder, "--limit", 2, "--json")
    assert code == 0, err
    assert [check["question"] for check in json.loads(out)["checks"]] == [
        "Do the tasks fail to compose?",
        "Does the adapter rely on its magnitudes?",
    ]
    for options, message in (
        (("--refit",), "--refit needs a run of one classification task"),
        (("--by", "plane"), "by 'plane' is not known; use layer, kind, planes"),
    ):
        code, out, err = run(capsys, monkeypatch, "ablate", folder, "--limit", 2, *options)
        assert (code, out) == (2, "")
        assert message in err.splitlines()[-1]


def test_a_run_with_one_behaviour_is_diagnosed_without_the_question_of_composition(workplace, tmp_path, capsys, monkeypatch):
    reply = f"{{id: {workplace / 'pairs.jsonl'}, prompt: '{{{{ question }}}}', answer: '{{{{ reply.text }}}}', examples: 8}}"
    tasks = f"tasks={{label: {{behaviour: label, examples: 8}}, reply: {reply}}}"
    train(recipe_for(workplace, tasks, "training.max_steps=1"), tmp_path / "run", progress=False)
    code, out, err = run(capsys, monkeypatch, "diagnose", tmp_path / "run", "--limit", 2, "--json")
    assert code == 0, err
    assert [check["question"] for check in json.loads(out)["checks"]] == ["Does the adapter rely on its magnitudes?"]


def test_the_name_of_a_method_tells_its_trainings_apart():
    labels = {
        "": "road_1, shares, co-activation 0.5",
        "co_activation_loss=all": "road_1, shares, co-activation 0.5, loss of all tokens",
        "adapter.trainable=angles": "road_1, shares, co-activation 0.5, angles only",
        "adapter.positions=l1": "road_1, shares, co-activation 0.5, positions l1",
    }
    for override, label in labels.items():
        assert method_label(load_recipe("composition-smollm2", [override] if override else [])) == label


@pytest.mark.parametrize("method", ["LoRA", "LoReFT"])
def test_baselines_that_adapt_all_tokens_refuse_other_positions(method):
    piece = SimpleNamespace(recipe=load_recipe("composition-smollm2", ["adapter.positions=last"]))
    with pytest.raises(InputError, match=f"{method} adapts all tokens: adapter.positions must be all, not last"):
        low_rank(piece, method)
