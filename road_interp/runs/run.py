"""A finished run: its recipe, adapter and scores, loaded from the run folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from road_interp.adapters.modules_to_save import digest, load_tensors, read_safetensors
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.data.labelled import label_options, with_glue_defaults
from road_interp.data.rows import split_files
from road_interp.errors import InputError
from road_interp.files import read_json_object, write_atomically
from road_interp.measure.composition import CompositionReport
from road_interp.measure.multitask_accuracy import MultiTaskAccuracyReport
from road_interp.models.float32_modules import keep_in_float32
from road_interp.models.loading import find_device, load_model, load_text_tokenizer, load_tokenizer, on_device, pad_as
from road_interp.models.road_model import RoadModel
from road_interp.progress import Progress, silent
from road_interp.recipes.loader import load_stored_recipe
from road_interp.recipes.schema import ClassificationRecipe, TrainableRecipe
from road_interp.runs.digests import sha256_of
from road_interp.runs.origin import Origin
from road_interp.runs.prediction import Prediction, Text, checked_texts, compute_logits, predictions_of
from road_interp.runs.run_files import (
    ADAPTER,
    CHECKPOINTS,
    CLASSES,
    COMPOSITION,
    ENVIRONMENT,
    FIGURES,
    HEAD,
    METRICS,
    MULTITASK_ACCURACY,
    MULTITASK_ACCURACY_0_1,
    ORIGIN,
    PLANES,
    RECIPE,
    check_finished,
    check_run_format,
)
from road_interp.sources import local_folder


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: recipe.yaml, adapter/, head.safetensors, classes.json, metrics.json, log.jsonl, environment.json, origin.json,
            figures/.
        recipe: the recipe of the run, with all defaults written out; its paths lead to model and data from any directory.
        adapter: the trained angles and scales.
        classes: the class labels in the order of the head's outputs; None for regression and for multi-task runs.
        metrics: validation and test scores, for `kind: classification` also those of the frozen backbone, and parameter counts.
        planes: the planes that each task owns; None for `kind: classification`.
        origin: where the run was started, and the hashes of its data; None for a run of an older release. That of a run of the
            Hub has the hashes only.
    """

    folder: Path
    recipe: TrainableRecipe
    adapter: RoadAdapter
    classes: tuple[Any, ...] | None
    metrics: dict[str, Any]
    planes: TaskPlanes | None = None
    origin: Origin | None = None

    def __repr__(self) -> str:
        return f"Run('{self.folder}', {self.recipe.kind}, {self.adapter!r})"

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """Read a run folder; `package://NAME/path` is one inside an installed package.

        Raises InputError for a folder that is not a run folder, or whose training has not finished.
        """
        folder = local_folder(folder)
        check_finished(folder)
        check_run_format(folder)
        origin = Origin.load(folder / ORIGIN) if (folder / ORIGIN).is_file() else None
        recipe = load_stored_recipe(folder / RECIPE)
        recipe = recipe if origin is None else origin.located(recipe, folder)
        adapter = RoadAdapter.load(folder / ADAPTER)
        _check_head(folder / HEAD, adapter)
        classes = planes = None
        if recipe.task_names:
            planes = TaskPlanes.from_json(read_json_object(folder / PLANES), adapter.sites)
        else:
            classes = read_json_object(folder / CLASSES).get("classes")
            if not isinstance(classes, list | None):
                raise InputError(f"{folder / CLASSES}: 'classes' must be a list or null, not {classes!r}")
        metrics = read_json_object(folder / METRICS)
        return cls(folder, recipe, adapter, None if classes is None else tuple(classes), metrics, planes, origin)

    def trained_recipe(self, device: str) -> TrainableRecipe:
        """The recipe with the precision in which it was trained in place of "auto", if that was on a device of this kind.

        On a CPU a recipe of fp16 is one of fp32.
        """
        path = self.folder / ENVIRONMENT
        environment = read_json_object(path) if path.is_file() else {}
        precision: Any = environment.get("precision")
        if environment.get("device") != device or precision not in ("fp32", "bf16", "fp16"):
            precision = self.recipe.training.precision
        if device == "cpu" and precision == "fp16":
            precision = "fp32"
        return replace(self.recipe, training=replace(self.recipe.training, precision=precision))

    def check_data(self) -> None:
        """Raise InputError for a data file, or a local base model, that has changed since the run was started."""
        if self.origin is not None:
            self.origin.check(self.folder)

    def check_classes(self, classes: Sequence[Any] | None, task: str | None = None) -> None:
        """Raise InputError if labelled data have other classes than the head of this run, or than that of one of its tasks."""
        own: Sequence[Any] | None = self.classes
        if task is not None:  # older runs of several tasks have not stored their classes
            path = self.folder / CLASSES
            own = read_json_object(path).get(task, classes) if path.is_file() else classes
        if [*(classes or ())] != [*(own or ())]:
            now, then = (", ".join(map(str, each or ["numbers"])) for each in (classes, own))
            whose = "its data" if task is None else f"task '{task}'"
            raise InputError(f"'{self.folder}': the labels of {whose} are {now} now, and were {then} when it was trained")

    def trained_on(self, data: str) -> bool:
        """Whether files, by their contents, or the split of a data set hold texts that the training texts were taken from."""
        recipe = self.recipe
        sources = [recipe.data] if isinstance(recipe, ClassificationRecipe) else recipe.tasks.values()
        trained = [(each, getattr(source, "split", "train")) for source in sources if (each := getattr(source, "id", None))]
        if digests := _digests(data, "test"):
            return any(digests & _digests(*each) for each in trained)
        return _with_split(data, "test") in [_with_split(*each) for each in trained]

    @property
    def composition(self) -> CompositionReport | MultiTaskAccuracyReport:
        """The test scores of the tasks, alone and together. Raises InputError for a run without such scores."""
        for name in (MULTITASK_ACCURACY, MULTITASK_ACCURACY_0_1):
            if (self.folder / name).is_file():
                return MultiTaskAccuracyReport.load(self.folder / name)
        if (self.folder / COMPOSITION).is_file():
            return CompositionReport.load(self.folder / COMPOSITION)
        raise InputError(f"'{self.folder}' has no multi-task scores: both {COMPOSITION} and {MULTITASK_ACCURACY} are missing")

    def load_model(self) -> RoadModel:
        """The trained model in evaluation mode: the recipe's base model with the trained rotations, task planes and head.

        It rotates the tokens of `adapter.positions`, also where `adapter` has been replaced by one of other positions.
        For `kind: multitask-classification` it is the rotated backbone without its heads.

        Raises InputError for a local base model that has changed since the run was started.
        """
        if self.origin is not None:
            self.origin.check_model(self.folder)
        if self.planes is None:
            with _without_load_report():  # it says that the head is new
                base, _ = load_model(self.recipe.model, self.recipe.auto_class, **label_options(self.classes))
            head = read_safetensors(self.folder / HEAD)
            keep_in_float32(base, {name.rpartition(".")[0] for name, each in head.items() if each.dtype == torch.float32})
            load_tensors(pad_as(load_tokenizer(self.recipe.model), base), head, HEAD)
        else:
            base, _ = load_model(self.recipe.model, self.recipe.auto_class)
        return RoadModel(base, self.adapter, planes=self.planes).eval()

    def predict(self, texts: Iterable[Text], *, device: str | None = None, progress: Progress = silent) -> tuple[Prediction, ...]:
        """The trained model's predictions for texts, in their order. The model is loaded for each call.

        Texts are read as they are, up to `model.max_length` tokens, also by a run whose recipe cuts its data to `data.words`.

        Args:
            texts: texts, or pairs of texts for a run that was trained on pairs.
            device: "cpu" or "cuda"; by default "cuda" where torch finds it.
            progress: called before the model is loaded, and before every batch of texts.

        Raises:
            InputError: a run of another kind than `kind: classification`, or texts where the run needs pairs, and vice versa.
        """
        recipe = self.classification_recipe("predict")
        texts = checked_texts(texts, with_glue_defaults(recipe.data).text_pair is not None)
        if not texts:
            return ()
        progress(f"loading the model of {self.folder}")
        model = on_device(self.load_model(), find_device(device))
        tokenizer = load_text_tokenizer(self.recipe.model)
        logits = compute_logits(model, tokenizer, texts, self.recipe.model.max_length, progress)
        return predictions_of(texts, logits, self.classes)

    def classification_recipe(self, purpose: str) -> ClassificationRecipe:
        """The recipe. Raises InputError, which names the purpose, for a run of another kind than `kind: classification`."""
        if not isinstance(self.recipe, ClassificationRecipe):
            raise InputError(f"'{self.folder}' is a run of {self.recipe.kind}; {purpose} is for kind: classification")
        return self.recipe

    def to_peft(self, folder: Path) -> None:
        """Write rotations and head as a folder that `PeftModel.from_pretrained` loads, with the class names beside them.

        The order of the classes is that of the head's outputs in `classes.json`; the base model takes them as
        `from_pretrained(base, num_labels=len(classes), id2label=dict(enumerate(classes)))`.

        Raises:
            InputError: a run that PEFT cannot represent, with the reason.
        """
        head = self.folder / HEAD
        names = read_safetensors(head) if head.is_file() else {}
        self.load_model().to_peft(folder, sorted({name.rpartition(".")[0] for name in names}))
        if self.planes is None:
            write_atomically(Path(folder) / CLASSES, json.dumps({"classes": self.classes}, indent=2) + "\n")

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the run folder with a model card and the figure of its angles, and return the URL of the commit.

        All other files of the repository are deleted by that commit.

        Args:
            repo_id: "user/name"; a missing repository is created.
            private: whether a new repository is private.
            token: access token of the Hub; by default that of `hf auth login`.

        Raises:
            InputError: a name or an upload that the Hub rejects, or no network.
        """
        from road_interp import measure, plots
        from road_interp.plots import export
        from road_interp.runs import hub

        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "run"
            shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns(CHECKPOINTS, FIGURES, ORIGIN))
            if self.origin is not None:
                (folder / ORIGIN).write_text(self.origin.without_directory().to_json(), encoding="utf-8")
            card = hub.model_card(self.adapter, self.recipe, self.metrics, repo_id, (self.folder / HEAD).is_file())
            (folder / hub.CARD).write_text(card, encoding="utf-8")
            report = measure.angles(self.adapter)
            shutil.copy(export.save_figure(plots.angles(report), report, Path(temporary), "angles"), folder)
            return hub.upload(folder, repo_id, private=private, token=token)

    @classmethod
    def from_hub(
        cls, repo_id: str, revision: str | None = None, token: str | None = None, trust_remote_code: bool = False
    ) -> Run:
        """Download a run that `push_to_hub` uploaded.

        Args:
            repo_id: "user/name".
            revision: branch, tag or commit; by default the main branch.
            token: access token of the Hub; by default that of `hf auth login`.
            trust_remote_code: allow the run to execute code from the repository of the base model.

        Raises:
            InputError: no such repository, one without a run, or a run that needs `trust_remote_code=True`.
        """
        from road_interp.runs import hub

        folder = hub.download(repo_id, revision, token)
        try:
            run = cls.load(folder)
        except InputError as error:
            raise InputError(f"'{repo_id}' is not a run of road-interp: {error}") from None
        if run.recipe.model.trust_remote_code and not trust_remote_code:
            what = f"'{repo_id}' executes code from the repository of '{run.recipe.model.id}'"
            raise InputError(f"{what}; review it, then pass trust_remote_code=True")
        return run


def _check_head(head: Path, adapter: RoadAdapter) -> None:
    """Raise InputError for the file of a head that was not trained beside the adapter."""
    trained = adapter.modules_to_save
    if trained is not None and head.is_file() and digest(read_safetensors(head)) != trained:
        raise InputError(f"'{head}' is another head than the one that was trained with this adapter: restore it, or train again")


def _digests(identifier: str, split: str) -> set[str]:
    """The hashes of the local files that a split is read from."""
    return {each for path in split_files(identifier, split) if (each := sha256_of(str(path))) is not None}


def _with_split(identifier: str, split: str) -> str:
    """The id of a data set with the split that is read, the given one where the id names none."""
    return identifier if ":" in identifier else f"{identifier}:{split}"


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Load a model without transformers' warning about weights that the checkpoint lacks."""
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
