"""A task of twelve things with a colour and a shape, and a tiny model that knows it."""

from __future__ import annotations

import torch

from helpers.models import tiny_model
from helpers.taught import teach
from road_interp.causal.answered_questions import answered_rightly
from road_interp.causal.entity_task import EntityTask, draw_variable_pairs
from road_interp.causal.variables import VariableRuns

VARIABLES = ("colour", "shape")
ENTITIES = [
    "baker",
    "banker",
    "barber",
    "beggar",
    "builder",
    "buyer",
    "captain",
    "carpenter",
    "coach",
    "cousin",
    "cyclist",
    "dancer",
]
SPLIT = {entity: ("train", "val", "test")[number // 4] for number, entity in enumerate(ENTITIES)}
VALUES = {"colour": ("is", "was"), "shape": ("he", "she")}
PROMPTS = {"colour": ("The %s has", "because %s cried"), "shape": ("The %s had",)}


def thing_task():
    """Every combination of colour and shape, in turn."""
    values = {
        entity: {name: VALUES[name][number // 2**bit % 2] for bit, name in enumerate(VARIABLES)}
        for number, entity in enumerate(ENTITIES)
    }
    return EntityTask("thing", values, PROMPTS, SPLIT)


def model_of_things(task, tokenizer):
    """A tiny model that answers every question of the task rightly."""
    model = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    zeroed = model.model.layers[0].self_attn.o_proj.weight  # the entity leaves its token in the second block only
    zeroed.data.zero_()
    questions = list(task.questions())
    texts = [question.prompt.replace("%s", question.entity) for question in questions]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    answers = torch.tensor([tokenizer(task.answer(question))["input_ids"][0] for question in questions])
    assert teach(model, zeroed, batch, answers, steps=150) < 0.01
    return model.eval()


def runs_of(model, task, tokenizer, split):
    """The runs of pairs of a split whose questions the model answers rightly."""
    right = answered_rightly(model, tokenizer, task, task.questions())
    return VariableRuns(model, draw_variable_pairs(task, right, tokenizer, split, 12), 0, VARIABLES)


def nothing(base, source, subspaces):
    """Keep the state of the base."""
    return base
