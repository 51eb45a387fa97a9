"""Lets every Python process that has this folder in PYTHONPATH know the kind of `kind.py`."""

from tests.own_kind.kind import register

register()
