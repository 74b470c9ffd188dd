"""The law of the gap: what a method loses, as a power of size, rounds and interval."""
