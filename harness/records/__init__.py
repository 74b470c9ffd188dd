"""What runs and timings leave on disk, and the one truth about a run's state.

Nothing here imports torch.
"""
