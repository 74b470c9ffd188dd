"""What people use today, to compare with: DistributedDataParallel and its hooks.

A module each; nothing lists them.
"""
