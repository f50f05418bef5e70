"""Models with rotations: RoadModel, pyvene interventions, merging, loading, generation."""
