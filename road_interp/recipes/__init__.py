"""Recipes: dataclasses read from YAML that name the model, the sites, the data and the training settings."""
