"""What is served where: the wanted state of each target, its releases, and what its nodes report.

It imports `tasks.store` and `infra`; every room of `tasks` but `store` and `serving` may import it. Begin with
`target`, the door to all records of a target. `release`, `current` and `node_report` are those records, and `view` is
what a roll-out reads of them at once. `approval` and `approvals` are a person's decision. `references` resolves what
people write (`MODEL@2`), `verification` checks a release byte by byte, `changes` compares JSON documents.
"""
