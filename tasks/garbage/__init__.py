"""Garbage collection: which artifacts may go, and deleting them beside running builds.

It imports `store` and `targets`; `steps`, `finetuned`, `watch` and `explain` may import it. Begin with `collect`, which
surveys the store and deletes. `reach` finds what must stay, and `keep` has the records by which people and runs say so.
"""
