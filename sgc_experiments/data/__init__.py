"""Datasets: the only part of the package that knows file formats."""
