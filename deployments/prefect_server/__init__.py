"""What Enginehouse has on a Prefect server: work pools, deployments and automations, and the events that it sends.

Begin with `desired.py`, which holds what is wanted, and `register.py`, which makes a server have it: `server.py` reads
what the server has, `difference.py` compares, `changing.py` makes the changes. `resources.py` and `automations.py` put
what is wanted into Prefect's form, `choices.py` what their forms offer. `prefect_file.py` writes the same for Prefect's
own command. The command line, the stack and the webhooks import it.
"""
