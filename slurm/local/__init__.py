"""A real Slurm cluster with virtual nodes on this machine, for tests and for trying."""
