"""The reference pages, made from the code, and the site of all documentation (`make docs`).

Nothing imports this room. `site` puts the pages together; begin there.
"""
