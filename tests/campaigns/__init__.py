"""Campaigns against the whole program: `scripts/fuzz` and `scripts/killtest`."""
