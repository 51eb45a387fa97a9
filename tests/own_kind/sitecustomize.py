"""Lets every Python process that has this folder in PYTHONPATH know the kind of `kind.py` and the gate of `gate.py`."""

from tests.own_kind import gate, kind

kind.register()
gate.register()
