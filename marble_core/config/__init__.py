"""What a run is told: presets, YAML and overrides become a RunConfig. Imports no torch."""
