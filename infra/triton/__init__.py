"""Triton, the server: which installation, which command line, its client, and a supervisor that keeps it running.

Begin with `supervisor.py`. `server.py` starts a process, `command.py` is its command line, `installation.py` and
`wheel.py` find the parts, `client.py` speaks to it, `log.py` reads its log. Tasks and deployments import it.
"""
