"""Names of the files of an adapter, and in the folder of the run around it."""

DESCRIPTION, PEFT_DESCRIPTION = "adapter.json", "adapter_config.json"
RUN_RECIPE, RUN_ADAPTER, RUN_HEAD = "recipe.yaml", "adapter", "head.safetensors"
