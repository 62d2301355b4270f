"""Logistic regression on sparse rows."""
