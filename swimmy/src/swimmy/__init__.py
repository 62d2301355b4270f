"""Runs functions and MPI programs on Kubernetes Pods. Not built yet: nothing lives here so far."""
