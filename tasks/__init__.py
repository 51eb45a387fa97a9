"""What Enginehouse does, as plain functions: the steps of a rebuild, and everything that they speak of.

Nothing in this package knows Prefect. `flows` and `deployments` may import it; it imports only `infra`, and inside it
each room imports only the rooms below its own (`make check` holds the order, which pyproject.toml lists):

    report                the page of one release: verdict, changes, figures, answers
    explain               answers about the store: lineage, why, releases, the formats of records
    finetuned, watch      new weights that events bring; new versions of TensorRT-LLM
    steps                 fetch, convert, build, upload, assemble, roll out, validate, promote
    garbage, kinds, sources   what may go; what a kind of model needs; where weights come from
    models                the catalogue: a model's file, its recipe, what a caller overrides
    load, lora, triton    requests under load; adapters that are merged; configurations and repositories of Triton
    gguf, trtllm          the GGUF format; TensorRT-LLM's tools, backend and LLM API, by version
    serving, targets      the code that runs inside Triton; what is wanted and reported on a target
    store                 artifacts, manifests, identities, leases

Begin with `tasks.steps.plan`: all identities of a rebuild, known before anything runs.
"""
