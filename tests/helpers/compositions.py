"""A composition report for predefined answers."""

from __future__ import annotations

from road_interp import measure
from road_interp.data.behaviours import BEHAVIOURS, Review, answer_parts
from road_interp.measure.labels import MethodLabel
from road_interp.models.generation import Answer

REVIEWS = [Review(f"text {n}", "positive" if n % 2 else "negative", n) for n in range(20)]
TASKS = {name: BEHAVIOURS[name] for name in ("label", "closing")}


def scripted(prompts, active):
    """Correct answers for one task; for both, every fourth answer lacks the closing phrase and one is not finished."""
    answers = []
    for number, review in enumerate(REVIEWS):
        tasks = [] if active == "__base__" else active.split("+")
        if len(tasks) == 2 and number % 4 == 0:
            tasks = ["label"]
        text = " ".join(text for _, text in answer_parts([TASKS[task] for task in tasks], review))
        answers.append(Answer(text, finished=not (active == "label+closing" and number == 1)))
    return answers


def with_both_tasks(prompts, active):
    """Answers with both tasks, whichever are active, as those of an undivided adapter."""
    return [Answer(" ".join(text for _, text in answer_parts(list(TASKS.values()), review)), finished=True) for review in REVIEWS]


def composition_report(seed=0, generate=scripted):
    """The composition report of `scripted`, or of another function that answers the same reviews."""
    prompts = [review.text for review in REVIEWS]
    label = MethodLabel("m", "road_1", seed)
    return measure.composition(generate, lambda prompts, answers: 2.0, TASKS, REVIEWS, prompts, label)
