"""The schema of recipes: frozen dataclasses, one per section and one per kind of recipe.

Errors name the bare field; `from_mapping` adds the path of the section.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import yaml

from road_interp.adapters.joined_names import check_name
from road_interp.adapters.task_planes import Split
from road_interp.errors import InputError
from road_interp.from_mapping import FieldError
from road_interp.rotation.plane_maps import Variant
from road_interp.sites.positions import parse_positions
from road_interp.sources import PACKAGE

GLUE_PREFIX = "glue/"  # of the id of a GLUE data set
SPLIT_WORDS = 8  # of a text, which decide its split with split_by_text


@dataclass(frozen=True)
class ModelRecipe:
    """The base model.

    Attributes:
        id: hub id, local folder, `.gguf` file, `package://NAME/path` inside an installed package, or `models://NAME` of
            `road-interp models`.
        revision: branch, tag or commit of a hub id.
        dtype: of the frozen weights; "auto" keeps that of the checkpoint.
        attn_implementation: as in transformers: "eager", "sdpa", ...; null selects the model's default.
        max_length: longer texts are truncated to this many tokens.
        device_map: as in accelerate: how to place a model that is too large for one device on several.
        shard: shard the frozen transformer blocks among torchrun's processes during training (FSDP2).
        trust_remote_code: run code that comes with a hub model.
    """

    id: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    attn_implementation: str | None = None
    max_length: int = 128
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    shard: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        _require(not self.shard or self.device_map is None, "device_map", self.device_map, "left out with shard")
        _require(1 <= self.max_length < 2**31, "max_length", self.max_length, "at least 1, and a number of tokens")

    @property
    def name(self) -> str:
        """Name used in results: the last component of the id, or the one before it if the last is "model"."""
        return self.id.removesuffix("/model").rpartition("/")[2]


@dataclass(frozen=True)
class AdapterRecipe:
    """Sites and parametrisation of the rotations: the arguments of `find_sites` and `RoadAdapter.identity`.

    Attributes:
        sites, layers, stack: as in `find_sites`.
        variant, group_size: as in PEFT's RoadConfig.
        positions: tokens that are rotated, as in RoadModel.
        trainable: what is trained: theta ("angles"), alpha ("magnitudes") or "both".
    """

    sites: str | list[str] = "all-linear"
    layers: int | str | list[int] | None = None
    stack: str | None = None
    variant: Variant = "road_1"
    group_size: int = 2
    positions: str = "all"
    trainable: Literal["both", "angles", "magnitudes"] = "both"

    def __post_init__(self) -> None:
        _require(self.group_size >= 2 and self.group_size % 2 == 0, "group_size", self.group_size, "even and at least 2")
        try:
            parse_positions(self.positions)
        except InputError as error:
            raise FieldError("positions", f"is invalid: {error}") from None


def glue_name(identifier: str) -> str | None:
    """The name of a GLUE data set in its id; None of other data, also of a file in a folder "glue"."""
    name = identifier.removeprefix(GLUE_PREFIX)
    return name if name != identifier and "/" not in name and not Path(name).suffix else None


@dataclass(frozen=True)
class DataRecipe:
    """A labelled data set and its splits.

    Attributes:
        id: `glue/NAME`, a file (CSV, TSV, JSON, JSONL, Parquet), a folder, a hub id, or `package://NAME/path`. Of a folder and a
            hub id the split "train" is read, and for `validation` and `test` the split of that name; `ID:SPLIT` names another.
        config: configuration of a hub data set.
        validation: id of the validation set. Without a test set it is divided in two, as in the paper: 1,000 examples (half of
            a set smaller than 2,000) select the checkpoint, and the rest are the test set.
        test: id of the test set.
        text: name of the column of texts.
        text_pair: name of the column of second texts, for pairs.
        label: name of the column of labels.
        filter: column values; only rows that have all of them are used. null selects all rows.
        words: texts are cut to their first `words` words and shorter texts are left out, so that the label cannot be predicted
            from the length.
        per_class: number of examples of `id` per class, drawn with `split_seed` before held-out examples are taken from them; by
            default all.
        split_by_text: divide texts by a hash of their first eight words instead of at random, so that data sets that share texts
            hold out the same ones. The sizes must then be fractions, and `words` at least 8. Of a GLUE data set only `split` is
            divided then.
        problem_type: "classification" (labels are classes) or "regression" (labels are numbers).
        classes: the labels in order; by default those of the training set, sorted.
        metric: by default accuracy for classification and pearson for regression.
        validation_size, test_size: number or fraction of the examples of `id` that are held out if `validation` is not given. The
            validation examples are drawn first, and a fraction `test_size` is of the rest: 0.1 and 0.1 of 200 are 20 and 18. With
            `split_by_text` both fractions are of all examples.
        split_seed: seed of every split; independent of the training seed, so that all seeds share one test set.
    """

    id: str
    config: str | None = None
    validation: str | None = None
    test: str | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    filter: dict[str, Any] | None = field(default_factory=dict)
    words: int | None = None
    per_class: int | None = None
    split_by_text: bool = False
    problem_type: Literal["classification", "regression"] = "classification"
    classes: list[Any] | None = None
    metric: Literal["accuracy", "matthews", "pearson"] | None = None
    validation_size: int | float = 0.1
    test_size: int | float = 0.1
    split_seed: int = 0

    def __post_init__(self) -> None:
        for key in ("validation_size", "test_size"):
            size = getattr(self, key)
            _require(size >= 1 if isinstance(size, int) else 0 < size < 1, key, size, "a count or a fraction below 1")
        has_classes = self.problem_type == "classification"
        _require(self.classes is None or has_classes, "classes", self.classes, "left out with problem_type regression")
        fitting = "regression" if self.metric == "pearson" else "classification"
        _require(self.metric is None or self.problem_type == fitting, "metric", self.metric, f"used with problem_type {fitting}")
        conflict = self.split_by_text and self.validation is not None
        _require(not conflict, "validation", self.validation, "left out with split_by_text")
        fractions = {key: getattr(self, key) for key in ("validation_size", "test_size")} if self.split_by_text else {}
        for key, size in fractions.items():
            _require(isinstance(size, float), key, size, "a fraction with split_by_text")
        alike = not self.split_by_text or self.words is None or self.words >= SPLIT_WORDS
        _require(alike, "words", self.words, f"at least {SPLIT_WORDS} with split_by_text, which reads so many")
        for key in ("words", "per_class"):
            count = getattr(self, key)
            _require(count is None or count >= 1, key, count, "at least 1")
        has_validation = self.validation is not None or glue_name(self.id) is not None
        _require(self.test is None or has_validation, "test", self.test, "given together with validation")
        _require(
            self.classes is None or len(set(map(repr, self.classes))) == len(self.classes) > 1,
            "classes",
            self.classes,
            "a list of two or more labels, each once",
        )
        are_labels = all(isinstance(label, str | int | float) for label in self.classes or ())
        _require(are_labels, "classes", self.classes, "a list of texts or numbers, with quotes around texts such as '2026-01-31'")
        _check_seed("split_seed", self.split_seed)

    @property
    def name(self) -> str:
        """Name used in results: the last component of the id, or the folder of a file; of embedded texts their `source`."""
        if self.id.startswith(PACKAGE):
            package = self.id.removeprefix(PACKAGE).partition("/")[0]
            return str((self.filter or {}).get("source", package)).replace("_", "-")
        path = Path(self.id)
        return path.parent.name or path.stem if path.suffix else path.name


@dataclass(frozen=True)
class TrainingRecipe:
    """AdamW with warm-up (paper, tables C.2 and C.3). Of `kind: classification` the weights of the first epoch with the best
    validation score are kept, of other kinds the last ones.

    Attributes:
        learning_rate: the highest, after the warm-up.
        epochs: passes over the training examples.
        batch_size: examples per step, over all processes.
        gradient_accumulation: batches per optimizer step. All count equally, also the last of an epoch, which may be shorter.
        weight_decay: of AdamW. It pulls angles and scales to 0, and a scale of 0 silences its plane; the paper has none.
        warmup_ratio: fraction of the steps in which the rate rises from 0.
        scheduler: of the rate behind the warm-up, as in transformers.
        max_grad_norm: longer gradients are cut to this norm; 0 cuts none.
        precision: of the forward pass; "auto" selects bf16 on a GPU that supports it (fp16 on others) and on a CPU with AMX
            (fp32 on others).
        max_steps: number of optimizer steps, in place of epochs.
        report_to: the trackers that get the log, as transformers knows them: trackio, wandb, tensorboard ...
    """

    learning_rate: float = 3e-3
    epochs: float = 10.0
    batch_size: int = 32
    gradient_accumulation: int = 1
    weight_decay: float = 0.0
    warmup_ratio: float = 0.1
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    max_grad_norm: float = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    max_steps: int | None = None
    report_to: list[str] = field(default_factory=list, repr=False, compare=False)  # nothing of a run depends on it

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "positive")
        _require(0 < self.epochs < 2**31, "epochs", self.epochs, "positive, and a number of passes over the data")
        _require(1 <= self.batch_size < 2**31, "batch_size", self.batch_size, "at least 1, and a number of examples")
        accumulated = self.gradient_accumulation
        _require(1 <= accumulated < 2**31, "gradient_accumulation", accumulated, "at least 1, and a number of batches")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        _require(self.max_grad_norm >= 0, "max_grad_norm", self.max_grad_norm, "0 (no clipping) or more")
        _require(0 <= self.warmup_ratio < 1, "warmup_ratio", self.warmup_ratio, "a fraction below 1")
        _require(
            self.max_steps is None or 1 <= self.max_steps < 2**31,
            "max_steps",
            self.max_steps,
            "at least 1, and a number of steps",
        )


class _YamlRecipe:
    """The base of recipes that run folders store."""

    def to_yaml(self: Any) -> str:
        """The recipe as YAML with all defaults included; `load_recipe` reads it."""
        content = asdict(self)
        return yaml.safe_dump({"kind": content.pop("kind"), **content}, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class ClassificationRecipe(_YamlRecipe):
    """One adapter and a new classification or regression head, trained on one labelled data set.

    Attributes:
        model: the encoder or decoder under the head.
        data: the data set, its columns and its splits.
        kind: of this recipe.
        adapter: where and how states are rotated.
        training: how adapter and head are trained.
        seed: of the head's initial weights and of the order of the examples.
    """

    auto_class: ClassVar[str] = "classifier"

    model: ModelRecipe
    data: DataRecipe
    kind: Literal["classification"] = "classification"
    adapter: AdapterRecipe = field(default_factory=AdapterRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    seed: int = 0

    def __post_init__(self) -> None:
        _check_seed("seed", self.seed)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Empty: the planes are not divided among tasks."""
        return ()


@dataclass(frozen=True)
class LabelledTaskRecipe:
    """One task of a multi-task classification: a labelled data set, for which a head is trained.

    Attributes:
        labels: the data set, its columns and its splits; its labels are classes.
        learning_rate: of the task's planes and head; by default that of `training`.
    """

    labels: DataRecipe
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        _check_task_rate(self)
        classes = self.labels.problem_type == "classification"
        _require(classes, "labels.problem_type", self.labels.problem_type, "classification in a multi-task recipe")


@dataclass(frozen=True)
class MultiTaskClassificationRecipe(_YamlRecipe):
    """Several classification heads on one hidden state: every example trains the planes and the head of its own task.

    Attributes:
        model: the model under the heads.
        tasks: by name, in the order of their planes.
        kind: of this recipe.
        adapter: where and how states are rotated.
        planes: how the planes are divided among the tasks: "shares", "alternating", "sites" or "layers".
        co_activation: probability, for every example of a training batch, that planes of other tasks, a random set that is not
            empty, are active too, without gradient.
        training: how adapter and heads are trained.
        seed: of the heads' initial weights, of the order of the examples and of the co-activations.
    """

    auto_class: ClassVar[str] = "backbone"

    model: ModelRecipe
    tasks: dict[str, LabelledTaskRecipe]
    kind: Literal["multitask-classification"] = "multitask-classification"
    adapter: AdapterRecipe = field(default_factory=AdapterRecipe)
    planes: Split = "shares"
    co_activation: float = 0.5
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    seed: int = 0

    def __post_init__(self) -> None:
        _check_tasks(self)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Task names, in the order of their planes."""
        return tuple(self.tasks)


PLAIN = "plain"  # the `behaviour` of a task whose answers show none
COUNTED = ("validation", "test", "validation_size", "test_size", "per_class", "split_by_text")
UNUSED_OF_REVIEWS = {
    **dict.fromkeys(COUNTED, "left out: scoring.validation and scoring.test count reviews"),
    **dict.fromkeys(("metric", "problem_type", "text_pair"), "left out: a review is one text with one of two labels"),
}
UNUSED_OF_BEHAVIOURS = ("config", "split", "prompt", "answer")


@dataclass(frozen=True)
class TaskRecipe:
    """One task of a language model: a built-in behaviour in answers to film reviews, or a data set of prompts and answers.

    Attributes:
        behaviour: name of a behaviour in `road_interp.data.behaviours`, or "plain" for answers without one.
        id, config: the data set of prompts and answers, as in DataRecipe; `config` also applies to `test`.
        split: of a hub data set, the one to train on; files have none.
        prompt, answer: Jinja templates over its columns, such as "{{ endings[label] }}".
        examples: number of training examples; of a data set these are the first rows, so shuffle a file that is sorted.
        test: data set of test questions, of which the first `scoring.test` are used.
        reference: Jinja template over the columns of `test` for the reference answer; by default `answer`.
        match: regular expression; an answer is correct if its last match equals that of the reference (`extract_answer`).
        learning_rate: of the task's planes; by default that of `training`.
    """

    behaviour: str | None = None
    id: str | None = None
    config: str | None = None
    split: str = "train"
    prompt: str = "{{ prompt }}"
    answer: str = "{{ answer }}"
    examples: int = 600
    test: str | None = None
    reference: str | None = None
    match: str | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        _check_task_rate(self)
        given = (self.behaviour is None) != (self.id is None)
        _require(given, "behaviour", self.behaviour, "given if id is not, and left out if it is")
        for key in UNUSED_OF_BEHAVIOURS if self.behaviour else ():
            value = getattr(self, key)
            _require(value == getattr(TaskRecipe, key), key, value, "left out with a behaviour, whose prompts are reviews")
        _require(self.examples >= 1, "examples", self.examples, "at least 1")
        _require((self.test is None) == (self.match is None), "match", self.match, "given together with test")
        _require(self.test is None or self.id is not None, "test", self.test, "given together with id")
        _require(self.reference is None or self.test is not None, "reference", self.reference, "given together with test")
        _require(self.match is None or _compiles(self.match), "match", self.match, "a regular expression")


@dataclass(frozen=True)
class ScoringRecipe:
    """Scoring of generated answers: the numbers of held-out prompts for validation and test. Decoding is greedy.

    Attributes:
        validation: number of prompts that are scored beside, for the choice of settings; none is trained on.
        test: number of prompts whose scores are reported; none is trained on.
        max_new_tokens: longer answers are cut off.
        batch_size: prompts that are answered at once.
    """

    validation: int = 64
    test: int = 256
    max_new_tokens: int = 24
    batch_size: int = 32

    def __post_init__(self) -> None:
        for key in ("validation", "test", "max_new_tokens", "batch_size"):
            _require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")


@dataclass(frozen=True)
class MultiTaskGenerationRecipe(_YamlRecipe):
    """Several tasks of one language model: every example trains the planes of its own task (paper, section 4.3).

    Attributes:
        model: the causal language model.
        tasks, planes, co_activation: as in MultiTaskClassificationRecipe.
        kind: of this recipe.
        adapter: where and how states are rotated.
        co_activation_warmup: fraction of the training steps over which the probability rises linearly from 0 to `co_activation`.
        co_activation_loss: the target of a token that decides a part of the answer of another active task: none ("own": it is
            left out), what the other active tasks predict without the example's own ("distilled"), or the token of the
            example's answer ("all"). Which tokens these are is known of behaviours; tasks with an `id` have none.
        shared: name of a task whose planes are active in every row of training and scoring, of plain answers or of a data set.
            Calls of the trained model name it beside the others, as in tasks=["label+shared"].
        template: Jinja template of the model's input, with the variable `prompt`. The tokeniser adds no special tokens to it.
        reviews: film reviews with two labels, the prompts of tasks that have a behaviour. `classes` lists the negative label and
            the positive one; without it the greater of two numbers is positive, and texts must be neg or negative and pos or
            positive.
        scoring: how answers to held-out prompts are scored.
        training: how the adapter is trained.
        seed: of the order of the examples and of the co-activations.
    """

    auto_class: ClassVar[str] = "causal-lm"

    model: ModelRecipe
    tasks: dict[str, TaskRecipe]
    kind: Literal["multitask-generation"] = "multitask-generation"
    adapter: AdapterRecipe = field(default_factory=AdapterRecipe)
    planes: Split = "shares"
    co_activation: float = 0.5
    co_activation_warmup: float = 0.0
    co_activation_loss: Literal["own", "distilled", "all"] = "own"
    shared: str | None = None
    template: str = "{{ prompt }}"
    reviews: DataRecipe | None = None
    scoring: ScoringRecipe = field(default_factory=ScoringRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    seed: int = 0

    def __post_init__(self) -> None:
        _check_tasks(self)
        warmup = self.co_activation_warmup
        _require(0 <= warmup <= 1, "co_activation_warmup", warmup, "a fraction of the steps")
        is_filled = re.search(r"\{[{%][^}]*\bprompt\b", self.template)
        _require(is_filled is not None, "template", self.template, "a text that contains {{ prompt }}")
        names = [name for name, task in self.tasks.items() if task.behaviour is not None]
        what = f"given: the behaviour of task '{''.join(names[:1])}' is trained on them"
        _require(not names or self.reviews is not None, "reviews", None, what)
        for key, reason in UNUSED_OF_REVIEWS.items() if self.reviews else ():
            value = getattr(self.reviews, key)
            _require(value == getattr(DataRecipe, key), f"reviews.{key}", value, reason)
        _require(self.shared is None or self.shared in self.tasks, "shared", self.shared, "the name of one of the tasks")
        shown = None if self.shared is None else self.tasks[self.shared].behaviour
        _require(shown in (None, PLAIN), "shared", self.shared, "a task of plain answers or of a data set: a behaviour is scored")

    @property
    def task_names(self) -> tuple[str, ...]:
        """Task names, in the order of their planes."""
        return tuple(self.tasks)


ThroughputTask = Literal[
    "forward",
    "training step",
    "requests",
    "distinct",
    "strengths",
    "continuous batching",
    "compiled forward",
    "compiled decoding",
]


@dataclass(frozen=True)
class ThroughputRecipe:
    """Settings of the throughput benchmark (paper, section 4.2 and figure 4).

    Attributes:
        model: the causal language model whose generation is timed.
        kind: of this recipe.
        requests: batch sizes of generation; each row has its own adapter.
        rounds: number of timings of every method in every setting.
        new_tokens: tokens generated per row, except where `lengths` varies them.
        lengths: numbers of tokens generated for eight requests (figure 4 middle).
        ranks: ranks of one unmerged LoRA for eight rows (figure 4 left).
        methods: names of the timed methods, which must include "bare"; by default all.
        tasks: what is timed: "forward" (8 x 64 tokens), "training step" (4 x 128), generation of `requests`, "distinct" (one
            adapter or a different one in every row), "strengths", "continuous batching" (prompts of 8 to 64 tokens), and
            "compiled forward" and "compiled decoding", which take minutes to compile.
        seed: of the adapters' random values and of the prompts.
    """

    model: ModelRecipe
    requests: list[int]
    kind: Literal["throughput"] = "throughput"
    rounds: int = 7
    new_tokens: int = 16
    lengths: list[int] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    tasks: list[ThroughputTask] = field(default_factory=lambda: list(get_args(ThroughputTask)[:6]))
    seed: int = 0

    def __post_init__(self) -> None:
        _check_seed("seed", self.seed)
        _require(not self.model.shard, "model.shard", True, "left out: the benchmark does not shard the model")
        _require(
            not self.methods or "bare" in self.methods,
            "methods",
            self.methods,
            "a list that contains 'bare': ratios are to the bare model",
        )
        _require(len(self.requests) >= 1, "requests", self.requests, "a list of at least one batch size")
        for key in ("requests", "lengths", "ranks"):
            _require(min(getattr(self, key), default=1) >= 1, key, getattr(self, key), "a list of whole numbers of at least 1")
        for key in ("rounds", "new_tokens"):
            _require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")


TrainableRecipe = ClassificationRecipe | MultiTaskClassificationRecipe | MultiTaskGenerationRecipe
Recipe = TrainableRecipe | ThroughputRecipe
KINDS: dict[str, type[Recipe]] = {
    "classification": ClassificationRecipe,
    "multitask-classification": MultiTaskClassificationRecipe,
    "multitask-generation": MultiTaskGenerationRecipe,
    "throughput": ThroughputRecipe,
}


def _check_tasks(recipe: MultiTaskClassificationRecipe | MultiTaskGenerationRecipe) -> None:
    _check_seed("seed", recipe.seed)
    _require(len(recipe.tasks) >= 1, "tasks", recipe.tasks, "a mapping of at least one task")
    for name in recipe.tasks:
        check_name(name, "a task")
    _require(0 <= recipe.co_activation <= 1, "co_activation", recipe.co_activation, "a probability")


def _check_task_rate(task: LabelledTaskRecipe | TaskRecipe) -> None:
    rate = task.learning_rate
    _require(rate is None or rate > 0, "learning_rate", rate, "positive")


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _check_seed(key: str, seed: int) -> None:
    _require(0 <= seed < 2**32, key, seed, "from 0 to 4294967295")


def _require(holds: bool, key: str, value: Any, what: str) -> None:
    if not holds:
        raise FieldError(key, f"must be {what}, not {value!r}")
