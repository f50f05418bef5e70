"""Recipes: what to rotate, on which data, how to train; dataclasses read from YAML."""
