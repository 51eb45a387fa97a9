"""The gate of how soon a candidate answers under load, beside the live release and within limits.

It imports `tasks.load`, which sends the requests. Begin with `gate`. `rounds` says which release is asked what in which
order, `turns` asks, `ratios` compares the same prompts of both, and `evidence` is what all of it comes to.
"""
