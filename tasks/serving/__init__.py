"""The code that Triton runs for a release: imports numpy, the standard library and its engine, nothing else.

These files are copied beside a release's `model.py`, where they form the package `1` (the version folder), so
they import each other relatively.
"""
