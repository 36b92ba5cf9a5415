"""Discriminative models behind the same protocol as the generative classifier."""
