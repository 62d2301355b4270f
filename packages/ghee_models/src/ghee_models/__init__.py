"""Reusable models on ghee. Not built yet: nothing lives here so far."""
