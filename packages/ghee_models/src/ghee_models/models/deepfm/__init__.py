"""DeepFM: a factorization machine beside a deep network."""
