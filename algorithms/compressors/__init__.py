"""Compressors, a file each; `algorithms.registry` finds them. Identity and zero are in the core, with the types."""
