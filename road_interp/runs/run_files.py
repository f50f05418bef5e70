"""File names in a run folder."""

from __future__ import annotations

RECIPE, ADAPTER, HEAD, METRICS, LOG = "recipe.yaml", "adapter", "head.safetensors", "metrics.json", "log.jsonl"
ENVIRONMENT, CLASSES, FIGURES, CHECKPOINTS = "environment.json", "classes.json", "figures", "checkpoints"
PLANES, COMPOSITION, EXACT_MATCH = "planes.json", "composition.json", "exact-match.json"
MULTITASK_ACCURACY = "multitask-accuracy.json"
MULTITASK_ACCURACY_0_1 = "heads.json"  # its name in run folders of release 0.1.0
