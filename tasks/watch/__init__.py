"""The release watch: what new versions of TensorRT-LLM mean for each model, and which rebuilds start now.

    verdict   each version for each model, by the model's policy: begin reading with it
    waves     the canary first, then the rest, a few at a time
    record    what the watch remembers in the store

Nothing in this package asks an index or starts a run: `flows.watch_releases` does. `flows`, `deployments` and
`tasks.explain` may import this package. It stands on `tasks.models`.
"""
