"""How workers are started and ended: stacked, processes, torchrun."""
