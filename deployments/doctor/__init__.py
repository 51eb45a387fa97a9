"""What `enginehouse doctor` looks at. Begin with `check.py`, then `table.py`.

Each check is a module with one value, CHECK. It looks at one thing, says what it found, and for what is wrong the
command that mends it. `examine.py` runs them side by side within their bounds. Nothing here changes a server, but that
the store's checks write and delete small objects of their own. Only `deployments.cli` imports this package.
"""
