"""The receiver of webhooks, which become fine-tuning events. The command line imports it.

Begin with `receiver.py`, the server; `senders.py` has how each sender proves its identity, and what its documents mean.
"""
