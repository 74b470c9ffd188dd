"""What the harness and the report reckon alike, from records and without torch."""
