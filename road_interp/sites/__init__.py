"""Where a model can be rotated: sites, how `find_sites` finds them, and token positions."""
