"""Microbenchmarks and end-to-end benchmarks: ``python -m benchmarks list | run NAME... | compare A B``.

Every figure is taken beside the figures that it is judged by: the candidate, what a user would write or install
instead, and a copy of the same footprint take turns in one process. See README.md in this folder for the method.
"""
