"""Models: the files of the catalogue, as frozen values that are checked once they are read.

Begin with `spec`: `Model` is one file. `recipe` has the recipe of each kind, `source` the weights, `source_uri` their
addresses, and `updates` the policy for new versions. `catalogue` reads the files, and `overrides` is the one way to
change a model for one run.

`tasks.kinds`, `tasks.sources` and `tasks.garbage`, and all that is above them, import this one.
"""
