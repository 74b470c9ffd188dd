"""Methods in slow NumPy, a file each, written from their sources.

A file has `CASES`, the settings under which the method must follow its transcription, and where the
method is another one with some settings, `RELATIONS`. Methods from before there were such files are
in `transcription.py`.
"""
