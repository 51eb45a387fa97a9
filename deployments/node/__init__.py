"""The agent beside each Triton, which gives it the state that the store asks for.

Begin with `agent.py`, the loop. `known.py` is what it knows of models and releases, `loading.py` how a release gets
into Triton and out of it, `engine_groups.py` the servers that serve one engine alone, `facts.py` what the machine has,
and `reports.py` when it reports. The command line imports it; Prefect is not imported.
"""
