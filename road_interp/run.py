"""A run folder: what a training leaves behind, and how to use it again."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from road_interp.adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.files import read_json_object
from road_interp.head import load_head, read_tensors
from road_interp.measure.composition import CompositionReport
from road_interp.measure.heads import HeadsReport
from road_interp.model import RoadModel
from road_interp.planes import TaskPlanes
from road_interp.pretrained import load_model
from road_interp.recipe import MixtureRecipe, Trainable, load_recipe, trainable
from road_interp.versions import library_versions

RECIPE, ADAPTER, HEAD, METRICS, LOG = "recipe.yaml", "adapter", "head.safetensors", "metrics.json", "log.jsonl"
ENVIRONMENT, CLASSES, FIGURES, CHECKPOINTS = "environment.json", "classes.json", "figures", "checkpoints"
PLANES, COMPOSITION, HEADS, MATCHES = "planes.json", "composition.json", "heads.json", "matches.json"


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        folder: recipe.yaml, adapter/, head.safetensors, classes.json, metrics.json, log.jsonl, environment.json, figures/.
        recipe: as used, every default written out.
        adapter: the learned angles and scales.
        classes: the labels in the head's order; None for regression and mixtures.
        metrics: scores of validation and test, of the frozen backbone beside them, and parameter counts.
        planes: which planes the tasks of a mixture own; None for a single task.
    """

    folder: Path
    recipe: Trainable
    adapter: RoadAdapter
    classes: tuple[Any, ...] | None
    metrics: dict[str, Any]
    planes: TaskPlanes | None = None

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """Read a run folder. Raises InputError for a folder that is none, or of a training that did not finish."""
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"run folder '{folder}' does not exist")
        if not (folder / METRICS).is_file():
            unfinished = (folder / RECIPE).is_file()
            state = "its training has not finished; go on with --resume" if unfinished else f"{METRICS} is missing"
            raise InputError(f"'{folder}' is not a finished run: {state}")
        recipe, adapter = trainable(load_recipe(folder / RECIPE)), RoadAdapter.load(folder / ADAPTER)
        classes = planes = None
        if isinstance(recipe, MixtureRecipe):
            planes = TaskPlanes.from_json(read_json_object(folder / PLANES), adapter.sites)
        else:
            classes = read_json_object(folder / CLASSES).get("classes")
            if not isinstance(classes, list | None):
                raise InputError(f"{folder / CLASSES}: 'classes' must be a list or null, not {classes!r}")
        metrics = read_json_object(folder / METRICS)
        return cls(folder, recipe, adapter, None if classes is None else tuple(classes), metrics, planes)

    @property
    def composition(self) -> CompositionReport | HeadsReport:
        """What a mixture was scored on its test data. Raises InputError for a run that has no such scores."""
        if (self.folder / HEADS).is_file():
            return HeadsReport.from_json((self.folder / HEADS).read_text())
        if (self.folder / COMPOSITION).is_file():
            return CompositionReport.from_json((self.folder / COMPOSITION).read_text())
        raise InputError(f"'{self.folder}' has no scores of several tasks: neither {COMPOSITION} nor {HEADS} is there")

    def load_model(self) -> RoadModel:
        """The trained model: base weights from where the recipe names them, with the learned head, rotations and planes.

        For a mixture of labelled texts the backbone without its heads.
        """
        positions = self.recipe.adapter.positions
        if isinstance(self.recipe, MixtureRecipe):
            base, _ = load_model(self.recipe.model, "backbone" if self.recipe.has_heads else "causal-lm")
            return RoadModel(base, self.adapter, positions, self.planes).eval()
        base, _ = load_model(self.recipe.model, "classifier", num_labels=1 if self.classes is None else len(self.classes))
        load_head(base, self.folder / HEAD)
        return RoadModel(base, self.adapter, positions).eval()

    def to_peft(self, folder: Path) -> None:
        """Write rotations and head as a folder that `PeftModel.from_pretrained` loads.

        Raises:
            InputError: a run that PEFT cannot express; it says why.
        """
        head = self.folder / HEAD
        names = read_tensors(head) if head.is_file() else {}
        self.load_model().to_peft(folder, sorted({name.rpartition(".")[0] for name in names}))

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the folder with a model card: see `road_interp.hub.push_to_hub`."""
        from road_interp.hub import push_to_hub

        return push_to_hub(self, repo_id, private=private, token=token)

    @classmethod
    def from_hub(
        cls, repo_id: str, revision: str | None = None, token: str | None = None, trust_remote_code: bool = False
    ) -> Run:
        """A run that was pushed: see `road_interp.hub.from_hub`."""
        from road_interp.hub import from_hub

        return from_hub(repo_id, revision, token, trust_remote_code)


def describe_environment(seed: int, device: str, precision: str) -> str:
    """What a run ran on, as JSON text: versions, seed, device and precision."""
    content = {
        "python": platform.python_version(),
        "versions": library_versions(),
        "seed": seed,
        "device": device,
        "precision": precision,
    }
    return json.dumps(content, indent=2) + "\n"


def next_free(folder: Path) -> Path:
    """`folder`, or `folder-2`, `folder-3`, ... if it is taken."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate
