"""Advice for one's own job: what each method would take there, and what the regime map says that it loses."""
