"""From a spec to runs: settings checked, bits, expected memory and time, and the search for
settings.
"""
