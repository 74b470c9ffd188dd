"""Campaigns on a Slurm cluster: what submitit does not do."""
