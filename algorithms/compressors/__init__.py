"""Compressors, found by `algorithms.registry`.

Identity and zero are in the core, with the types.
"""
