"""Where a model can be rotated: sites, how they are found, which tokens."""
