"""The report on one release: what was decided and why, what changed, what each gate measured, what to do next.

It is the highest room of `tasks`; only `flows` and `deployments` import it. Begin with `release` (what is read) and
`sections` (what is told of it, as `blocks`). `html`, `text` and `markdown` each print the same blocks, and `stored`
keeps the page beside the release. A further section is one function in `SECTIONS`.
"""
