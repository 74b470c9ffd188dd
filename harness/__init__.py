"""From an experiment spec to records: plan, run, resume."""
