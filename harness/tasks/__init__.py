"""Tasks: what a run trains on."""
