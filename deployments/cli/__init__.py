"""The command `enginehouse`. Begin with `main.py`.

`command.py` is what the commands share. Each `…_commands.py` holds a group of commands, their options and what they do;
`plan.py` and `assemble.py` are the work of two larger ones. `running.py` shows steps while they run; `rebuild_runs.py`
and `run_log.py` read runs and their logs from Prefect's API. Nothing else imports this package.
"""
