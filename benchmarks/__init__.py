"""The figures that the documentation quotes, each from one command: `python -m benchmarks.NAME`.

Both sides of a comparison are measured in one run, on the same network, images and machine. The
last line of the output is JSON with the fields named in the module; what stands before it is for
people. `--quick` takes at most a minute and tells that a benchmark works, not what it measures.
"""
