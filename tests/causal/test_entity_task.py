"""Entities with attributes: RAVEL's files, questions that the model answers rightly, and pairs."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, OpenAIGPTConfig, PreTrainedTokenizerFast, RwkvConfig

from helpers.models import random_adapter, tiny_model
from helpers.things import ENTITIES, PROMPTS, SPLIT, VARIABLES
from road_interp.causal.answered_questions import answered_rightly, next_tokens, with_best_prompts
from road_interp.causal.entity_task import EntityTask, Question, draw_variable_pairs, load_ravel
from road_interp.causal.interchange_runs import InterchangeRuns
from road_interp.causal.noun_task import number_and_gender
from road_interp.errors import InputError
from road_interp.models.road_model import RoadModel
from road_interp.sites.find import find_sites


def test_questions_that_are_answered_rightly(taught_things, task, tokenizer):
    questions = list(task.questions())
    assert len(questions) == 12 * 3
    assert answered_rightly(taught_things, tokenizer, task, []) == []
    assert answered_rightly(taught_things, tokenizer, task, questions, batch_size=5) == questions
    wrong = replace(task, values={entity: {"colour": "are", "shape": "they"} for entity in ENTITIES})
    assert answered_rightly(taught_things, tokenizer, wrong, questions) == []


def test_a_model_that_has_overflowed_is_not_one_that_knows_nothing(taught_things, task, tokenizer):
    broken = copy.deepcopy(taught_things)
    broken.get_output_embeddings().weight.data[:] = math.nan
    with pytest.raises(InputError, match="the model's logits are NaN or infinite for 1 of 1 texts: use bfloat16 or float32"):
        answered_rightly(broken, tokenizer, task, list(task.questions())[:1])


def test_a_space_before_a_number_is_no_answer():
    """Every number begins with the token of a space, so that a model that predicts it need not know the number."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "▁": 1, "1": 2, "9": 3, "▁baker": 4}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True)])
    words.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    model = tiny_model("Llama", "causal-lm", vocab_size=5)
    with torch.no_grad():
        (token,) = next_tokens(model, [tokenizer("baker")["input_ids"]])
        model.lm_head.weight[[1, token]] = model.lm_head.weight[[token, 1]]
    task = EntityTask("person", {"baker": {"year": "19"}}, {"year": ("%s",)}, {"baker": "train"})
    assert tokenizer("baker 19")["input_ids"] == [4, 1, 2, 3]
    assert next_tokens(model, [[4]]) == [1]
    assert answered_rightly(model, tokenizer, task, task.questions()) == []


def test_questions_in_the_tokens_of_another_model_are_refused(task, tokenizer):
    model = tiny_model("Llama", "causal-lm", vocab_size=20)
    with pytest.raises(InputError, match="and LlamaForCausalLM has 20 tokens: encode them with the tokeniser of this model"):
        answered_rightly(model, tokenizer, task, task.questions())


def test_the_prompts_that_are_answered_best(taught_things, task, tokenizer):
    """A prompt of words that the model was not taught is the last choice."""
    more = replace(task, prompts={**task.prompts, "colour": ("%s cried cried", *task.prompts["colour"])})
    chosen = with_best_prompts(taught_things, tokenizer, more, 2)
    assert set(chosen.prompts["colour"]) == set(task.prompts["colour"])
    assert chosen.prompts["shape"] == task.prompts["shape"]


@pytest.mark.parametrize("count", [0, -1, "2"])
def test_a_number_of_prompts_or_entities_is_at_least_one(taught_things, task, tokenizer, count):
    for call in (lambda: with_best_prompts(taught_things, tokenizer, task, count), lambda: task.sampled(count)):
        with pytest.raises(InputError, match=f"count must be a whole number of at least 1, not {count!r}"):
            call()


def test_texts_that_begin_alike_give_the_same_tokens(taught_things, tokenizer):
    """The beginning is computed once; also where one text is the beginning of another."""
    texts = ["The baker cried because", "The baker cried", "The baker has", "The baker had"]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    alone = [taught_things(torch.tensor([each])).logits[0, -1].argmax().item() for each in ids]
    assert next_tokens(taught_things, ids) == alone
    assert next_tokens(taught_things, ids[:1]) == alone[:1]


def test_hooks_that_count_tokens_read_whole_texts(taught_things, tokenizer):
    ids = [tokenizer(text)["input_ids"] for text in ("The baker cried because she", "The baker cried because he")]
    model = copy.deepcopy(taught_things)
    model.model.layers[0].register_forward_hook(lambda module, args, output: output.index_fill(1, torch.tensor([1, 4]), 2.0))
    alone = [model(torch.tensor([each])).logits[0, -1].argmax().item() for each in ids]
    assert next_tokens(model, ids) == alone


@pytest.mark.parametrize(
    "config",
    [
        RwkvConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, context_length=64),
        OpenAIGPTConfig(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    ],
)
def test_models_that_keep_no_keys_read_whole_texts(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    texts = torch.randint(300, (4, 6)).tolist()
    texts = [[*texts[0], *text[:number]] for number, text in enumerate(texts)]
    with torch.no_grad():
        alone = [model(torch.tensor([text])).logits[0, -1].argmax().item() for text in texts]
    assert next_tokens(model, texts) == alone


def test_virtual_tokens_and_keys_of_peft(taught_things, task, tokenizer):
    """Keys of prefix tuning act on every text; virtual tokens of prompt tuning shift all others, and are refused."""
    ids = [tokenizer(text)["input_ids"] for text in ("The baker cried because", "The baker cried", "The baker had")]
    torch.manual_seed(0)
    prefixed, prompted = (
        get_peft_model(copy.deepcopy(taught_things), kind(task_type="CAUSAL_LM", num_virtual_tokens=9)).eval()
        for kind in (PrefixTuningConfig, PromptTuningConfig)
    )
    with torch.no_grad():
        alone = [prefixed(input_ids=torch.tensor([each])).logits[0, -1].argmax().item() for each in ids]
    assert next_tokens(prefixed, ids) == alone
    pairs = draw_variable_pairs(task, list(task.questions()), tokenizer, "train", 2)
    for call in (
        lambda: answered_rightly(prompted, tokenizer, task, task.questions()),
        lambda: InterchangeRuns(prompted, pairs.pairs, 0, "entity"),
    ):
        with pytest.raises(InputError, match="PeftModelForCausalLM reads 12 tokens where it is given 3.*virtual tokens"):
            call()


def test_pairs_swap_one_variable_and_ask_for_one(task, tokenizer):
    pairs = draw_variable_pairs(task, list(task.questions()), tokenizer, "train", 6)
    assert len(pairs) == 4 * 6
    for number, (base, source) in enumerate(pairs.entities):
        asked = pairs.asked[number]
        values = [task.values[entity][asked] for entity in (base, source)]
        assert values[0] != values[1]
        target = values[1] if pairs.is_cause[number] else values[0]
        assert tokenizer.decode([pairs.targets[number]]) == target
        assert base in pairs.pairs.base[number]
        swapped = pairs.swapped[number]
        assert len({task.values[entity][swapped] for entity in (base, source)}) == 2
    assert sum(pairs.is_cause) == 12
    again = draw_variable_pairs(task, list(task.questions()), tokenizer, "train", 6)
    assert again == pairs
    assert len({(base, source) for base, source in zip(pairs.pairs.base[:6], pairs.pairs.source[:6], strict=True)}) == 6
    known = [question for question in task.questions() if question.entity != "baker" or question.attribute != "shape"]
    known = draw_variable_pairs(task, known, tokenizer, "train", 4)
    sources = {source for (_, source), asked in zip(known.entities, known.asked, strict=True) if asked == "shape"}
    assert "baker" not in sources  # the model could not give its shape
    assert "baker" in {source for _, source in known.entities}
    with pytest.raises(InputError, match="0 pairs of 2 that swap colour and ask for colour: too few test questions"):
        draw_variable_pairs(task, list(task.questions("train")), tokenizer, "test", 2)


def test_ravels_files(tmp_path):
    files = {
        "entity_attributes": {
            "Oslo": {"Country": "Norway", "Continent": "Europe"},
            "Lima": {"Country": "Peru", "Continent": ""},
            "Troy": {"Country": None, "Continent": "Asia"},
            "Ys": {"Country": math.nan, "Continent": 1},
        },
        "attribute_to_prompts": {
            "Country": ["%s is in", "%s and %s", "in %s, of"],
            "Continent": ['{"city": "%s", "continent": "'],
        },
        "entity_to_split": {"Oslo": "train", "Lima": "val", "Troy": "val", "Ys": "val"},
        "prompt_to_split": {
            "%s is in": "train",
            "%s and %s": "train",
            '{"city": "%s", "continent": "': "train",
            "in %s, of": "val",
        },
    }
    for name, content in files.items():
        (tmp_path / f"ravel_city_{name}.json").write_text(json.dumps(content))
    task = load_ravel(tmp_path, "city", ["Country", "Continent"])
    assert task.attributes == ("Country", "Continent")
    assert [question.prompt for question in task.questions("train")] == ["%s is in", '{"city": "%s", "continent": "']
    assert [task.answer(question) for question in task.questions()] == [" Norway", "Europe"]  # others lack a value
    assert load_ravel(tmp_path, "city", ["Continent"]).values["Ys"] == {"Continent": "1"}
    by_country = load_ravel(tmp_path, "city", ["Country", "Continent"], "Country")
    assert (task.cluster, by_country.cluster) == ({}, {"Oslo": "Norway"})
    with pytest.raises(InputError, match="cluster 'Mayor' is not among the attributes Country, Continent"):
        load_ravel(tmp_path, "city", ["Country", "Continent"], "Mayor")
    with pytest.raises(InputError, match="'Mayor' is not an attribute of city; there are Country, Continent"):
        load_ravel(tmp_path, "city", ["Mayor"])
    with pytest.raises(InputError, match=r"ravel_verb_entity_attributes\.json' does not exist"):
        load_ravel(tmp_path, "verb", ["Definition"])
    for name, missing in (("entity_to_split", "Ys"), ("prompt_to_split", "in %s, of")):
        kept = {key: value for key, value in files[name].items() if key != missing}
        (tmp_path / f"ravel_city_{name}.json").write_text(json.dumps(kept))
    with pytest.warns(UserWarning, match="city: 2 entities and prompts have no split and are left out, such as 'Ys'"):
        assert load_ravel(tmp_path, "city", ["Country", "Continent"]).values == task.values
    files["prompt_to_split"] |= {"%s is in": "val", "%s and %s": "val"}
    for name in ("entity_to_split", "prompt_to_split"):
        (tmp_path / f"ravel_city_{name}.json").write_text(json.dumps(files[name]))
    with pytest.raises(InputError, match="city has no prompt of the training split that asks for 'Country'"):
        load_ravel(tmp_path, "city", ["Country", "Continent"])
    (tmp_path / "ravel_city_entity_attributes.json").write_text('{"Oslo": 3}')
    with pytest.raises(InputError, match="not in RAVEL's format"):
        load_ravel(tmp_path, "city", ["Country"])


def test_number_and_gender_needs_no_files():
    task = number_and_gender()
    assert task.attributes == ("number", "gender")
    assert task.values["queens"] == {"number": "plural", "gender": "female"}
    assert all(task.split[noun] == task.split[group] for noun, group in task.group.items())
    assert [noun for noun, group in task.group.items() if group == "monk"] == ["monk", "monks", "nun", "nuns"]
    assert set(task.split.values()) == {"train", "val", "test"}
    assert len(task.values) == 4 * 28
    words = {word.strip(":;-") for prompts in task.prompts.values() for prompt in prompts for word in prompt.split()}
    assert not words & set(task.values)  # no answer stands in a prompt
    assert not [
        noun
        for noun in task.values
        for other in task.values
        if noun != other and noun.endswith(other) and task.group[noun] != task.group[other]
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": {**PROMPTS, "shape": "The %s had"}}, "EntityTask needs a list of str, not str: give the prompts of 'shape'"),
        (
            {"prompts": {**PROMPTS, "shape": ("The had",)}},
            "thing: the prompt 'The had' must have one %s, the place of the entity",
        ),
        ({"split": {**SPLIT, "baker": "valid"}}, "thing: the split of 'baker' is 'valid'; use train, val, test"),
        ({"split": {key: SPLIT[key] for key in SPLIT if key != "baker"}}, "thing: the split of 'baker' is None"),
        (
            {"values": {"baker": {"colour": "is"}}},
            "thing: the shape of 'baker' must be a text without space at its ends, not None",
        ),
        ({"values": {"baker": {"colour": "is", "shape": 3}}}, "thing: the shape of 'baker' must be a text .*, not 3"),
        ({"values": {"baker": {"colour": "is", "shape": " he"}}}, "the shape of 'baker' must be a text .*, not ' he'"),
        (
            {"values": {"baker ": dict.fromkeys(VARIABLES, "is")}, "split": {"baker ": "val"}},
            "the name of 'baker ' must be a text",
        ),
        ({"values": {3: dict.fromkeys(VARIABLES, "is")}, "split": {3: "val"}}, "the name of '3' must be a text .*, not 3"),
        ({"values": ["baker"]}, "causal.EntityTask needs Mapping, not list: give a dictionary as values"),
        ({"split": None}, "causal.EntityTask needs Mapping, not NoneType: give a dictionary as split"),
        ({"cluster": ["bakers"]}, "causal.EntityTask needs Mapping, not list: give a dictionary as cluster"),
        ({"cluster": {"bakre": "bakers"}}, "thing: cluster has 'bakre', which is no entity"),
        ({"cluster": {"baker": 1}}, "thing: the cluster of 'baker' must be a text, not 1"),
        ({"group": {"baker": "b", "cyclist": "b"}}, "thing: the group 'b' is in the splits train and test: put it into one"),
    ],
)
def test_tasks_that_are_incomplete_are_refused(task, changed, message):
    with pytest.raises(InputError, match=message):
        replace(task, **changed)


def test_questions_of_another_split_or_task_are_refused(task, taught_things, tokenizer):
    with pytest.raises(InputError, match="unknown split 'valid'; use train, val, test"):
        list(task.questions("valid"))
    nouns = list(number_and_gender().questions("train"))
    for ask in (
        lambda: answered_rightly(taught_things, tokenizer, task, nouns),
        lambda: draw_variable_pairs(task, nouns, tokenizer, "train", 2),
    ):
        with pytest.raises(InputError, match="thing has no number of '.*': the question is of another task"):
            ask()


def test_the_model_answers_without_dropout(task, tokenizer):
    model = tiny_model("GPT2", "causal-lm", vocab_size=len(tokenizer), resid_pdrop=0.5, embd_pdrop=0.5).train()
    word = next_tokens(model.eval(), [tokenizer("The baker has")["input_ids"]])[0]
    told = replace(task, values={entity: dict.fromkeys(VARIABLES, tokenizer.decode(word).strip()) for entity in ENTITIES})
    model.train()
    answers = {tuple(answered_rightly(model, tokenizer, told, told.questions())) for _ in range(4)}
    assert len(answers) == 1
    assert answers != {()}
    assert model.training
    for other, message in (
        (tiny_model("Bert"), "has no head over the vocabulary"),
        (RoadModel(model, random_adapter(find_sites(model, "block-output"))), "use `with model.attached"),
    ):
        with pytest.raises(InputError, match=message):
            answered_rightly(other, tokenizer, task, task.questions())


@pytest.mark.parametrize("prompt", ["The baker has", "%s and %s"])
def test_a_question_has_one_place_for_the_entity(taught_things, task, tokenizer, prompt):
    wrong = Question("baker", "colour", prompt)
    for use in (
        lambda: answered_rightly(taught_things, tokenizer, task, [wrong]),
        lambda: draw_variable_pairs(task, [wrong], tokenizer, "train", 2),
    ):
        with pytest.raises(InputError, match="thing: the question .* must have one %s"):
            use()


@pytest.mark.parametrize("end", ["\n", '"', "“", "`", "[", "{", "("])
def test_an_answer_on_a_new_line_or_in_quotes_has_no_space_in_front(end):
    task = EntityTask("city", {"Oslo": {"country": "Norway"}}, {"country": (f"Country of %s: {end}", "%s in")}, {"Oslo": "train"})
    assert [task.answer(question) for question in task.questions()] == ["Norway", " Norway"]


def test_a_slow_tokeniser_is_no_lack_of_knowledge(tokenizer, monkeypatch):
    task = EntityTask("city", {"Oslo": {"country": "Norway"}}, {"country": ("%s is in",)}, {"Oslo": "train"})
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    with pytest.raises(InputError, match="causal.draw_variable_pairs: .* does not return token offsets; load the fast"):
        draw_variable_pairs(task, list(task.questions()), tokenizer, "train", 2)
