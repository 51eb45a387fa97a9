"""How Enginehouse is run: whatever a person, a machine or a Prefect server starts.

    cli/             the command `enginehouse`
    node/            the agent beside each Triton
    prefect_server/  what a Prefect server has of Enginehouse: pools, deployments, automations
    stack/           the embedded stack of `enginehouse up`
    webhooks/        the receiver of webhooks about new weights
    docs/            the reference, made from the code, and the site of the documentation
    models/          the catalogue, one file for each model

Nothing imports it but tests; it may import flows, tasks and infra. Begin with `cli/main.py`.
"""
