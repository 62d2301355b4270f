"""Reproducible dataset builds. Not built yet: nothing lives here so far."""
