"""Answers from the store alone: where something came from, why it was rebuilt, which releases there are.

It may import every other room but `report`; that one, `flows` and `deployments` import it. Begin with `lineage` (a
graph) and `why` (two identity documents compared); `lineage_text` and `why_text` print them. `releases` lists the
releases of a model, and `fleet` all models and nodes. `formats` has the JSON schema of every record, which
`docs/reference/records.md` describes.
"""
