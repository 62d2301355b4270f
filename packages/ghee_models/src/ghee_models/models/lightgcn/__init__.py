"""LightGCN: graph convolution on the user-item graph."""
