"""The network lab, and what is timed: steps on emulated links and on real ones."""
