"""What an experiment says: files, the spec in them, its rows and runs; nothing here imports torch."""
