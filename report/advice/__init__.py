"""Which method to use: for a job of one's own, and as a map over kinds of network and links."""
