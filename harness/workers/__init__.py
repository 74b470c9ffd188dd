"""How workers are started and ended: stacked, threads, processes, torchrun, Slurm tasks."""
