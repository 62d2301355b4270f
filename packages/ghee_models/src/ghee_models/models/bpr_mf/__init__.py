"""Matrix factorization with the BPR loss."""
