"""EASE: a linear autoencoder in closed form."""
