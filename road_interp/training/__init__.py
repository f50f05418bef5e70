"""Training: one procedure for all recipes, one experiment for each kind of recipe, baselines and studies."""
