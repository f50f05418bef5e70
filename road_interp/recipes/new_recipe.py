"""A commented recipe for a model and a labelled file of one's own."""

from __future__ import annotations

import yaml

TEMPLATE = """\
# Rotations of {model} for the labels of {data}.
#
#   road-interp train {name}.yaml
#   road-interp train {name}.yaml training.epochs=2 adapter.variant=road_2     # any key can be given on the command line
kind: classification
model:
  id: {model}
  max_length: 128         # longer texts are cut to this many tokens
data:
  id: {data}
  text: {text}
  label: {label}
  # text_pair: COLUMN     # the second text of a pair
  # problem_type: regression     # labels are numbers
  validation_size: 0.1    # fraction or number of the texts that select the checkpoint
  test_size: 0.1          # fraction or number of the texts of the reported score
  # validation: FILE      # or files of their own for both
  # test: FILE
adapter:
  sites: all-linear       # or attention, mlp, block-output, ...
  variant: road_1         # road_2 and road_4 have more parameters
training:
  learning_rate: 3e-3
  epochs: 10
  batch_size: 32
  # report_to: [trackio]     # or wandb, tensorboard
seed: 0
"""


def new_recipe(name: str, model: str, data: str, text: str, label: str) -> str:
    """The YAML text of a recipe.

    Args:
        name: of its file, without the suffix.
        model, data: as `model.id` and `data.id`.
        text, label: column names.
    """
    values = {"model": model, "data": data, "text": text, "label": label}
    return TEMPLATE.format(name=name, **{key: _scalar(value) for key, value in values.items()})


def _scalar(value: str) -> str:
    """A text as a YAML value on one line."""
    return yaml.safe_dump([value], allow_unicode=True, width=2**20).removeprefix("- ").rstrip("\n")
