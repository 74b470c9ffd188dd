"""From a spec to runs.

Settings are checked, bits, memory and time forecast, and settings searched for.
"""
