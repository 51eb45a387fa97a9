"""The agent beside each Triton, which gives it the state that the store asks for.

Begin with `agent.py`, the loop. `wanted.py` reads the store and keeps what it says on the disk, `known.py` is what the
node knows of models and releases, `converging.py` what is done next, `loading.py` how a release gets into Triton and
out of it, from the verified `copies.py`. `watching.py` finds what does not answer, by `asking.py`; `orphans.py` what
nobody wants. `health.py` is the address that says what answers, and `reports.py` writes the same into the store.
`observing.py` counts what clients see of each release, and `memory.py` what its processes hold.
`engine_groups.py` has the servers that serve one engine alone, `facts.py` what the machine has, and `folder.py` keeps a
second agent out. The command line imports it; Prefect is not imported.
"""
