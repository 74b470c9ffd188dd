"""Calculations that harness and report share, from records. No torch."""
