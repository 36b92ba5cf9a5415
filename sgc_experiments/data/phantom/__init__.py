"""Synthetic mammograms, written to disk in the layouts of the real datasets.

Nothing here is a patient's: the phantom lets every experiment run, and every reader be tested,
without access to medical data.
"""
