"""The open track: how a method enters, and how an entry is verified."""
