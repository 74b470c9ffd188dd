"""What a method's steps must be worth: in a job of one's own, and over bandwidths."""
