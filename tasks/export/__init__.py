"""A release as one folder that other programs read and verify, without Enginehouse and without its store.

Begin with `release`, the verb. `contents` says what belongs to a release, `model_card` and `origin` what is known of
its weights, `runtime` what builds and runs it. `oci` has the documents of the image layout, and `layout` writes it to
the disk; `provenance` and `bill_of_materials` are what is said of it: SLSA 1 and CycloneDX 1.6.

With `report` it is the highest room of `tasks`; only `deployments` imports it.
"""
