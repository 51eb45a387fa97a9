"""Processes, and that none of them outlives its purpose.

`sessions.py` starts servers and ends them with all of their children; `background.py` finds servers of an earlier
command again. `child.py` runs one external tool to its end: `child_supervisor.py` is the program between Enginehouse
and the tool (standard library only), `supervised_child.py` holds it, `child_output.py` and `child_sampler.py` watch it.
Infra, tasks and deployments import it. Begin with `child.py`.
"""
