"""From a spec to runs: settings checked, bits, memory and time foretold, and the search for settings."""
