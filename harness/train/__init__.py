"""One trainee: the loop, its data order and schedule, evaluation, checkpoints."""
