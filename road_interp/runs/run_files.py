"""The names of the files in a run folder."""

from __future__ import annotations

RECIPE, ADAPTER, HEAD, METRICS, LOG = "recipe.yaml", "adapter", "head.safetensors", "metrics.json", "log.jsonl"


ENVIRONMENT, CLASSES, FIGURES, CHECKPOINTS = "environment.json", "classes.json", "figures", "checkpoints"


PLANES, COMPOSITION, HEADS, MATCHES = "planes.json", "composition.json", "heads.json", "matches.json"
