"""What lies in the store, whoever wrote it: artifacts, their identities, and the records that several writers change.

It is the lowest room of `tasks`: every other room may import it, and it imports only `infra`. Begin with `artifact`
(references and manifests) and `artifact_store` (look up, publish, download), then `identity` (what an artifact is made
of). `record` is the base of all JSON records, `cell` changes them by compare-and-swap, `lease` says who makes an
artifact right now. `inventory` lists artifacts, `verify` and `signing` check them, `attempt` resumes an upload,
`copies` and `reporter` serve nodes and long steps.
"""
