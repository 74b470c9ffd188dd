"""The 25 questions of the paper's readers.

Each is a function that gives a frame and numbers, and a template that says them.
"""
