"""The networks: one module each, with a function `build`."""
