"""What an experiment says: files, the spec in them, its rows and runs.

Nothing here imports torch.
"""
