"""The steps of a rebuild, one module each, from `fetch` and `export` to `validate` and `promote`.

    plan         every identity of a rebuild, known before anything runs: begin reading with it
    resolve      the weights of a model, pinned
    context      what every step is given; `workspace` is its folders on this machine's disk
    approve      a person decides between `validate` and `promote`, where the model's file asks for that
    nodes        the live nodes of a target; `node_fit` asks whether they can serve and hold an engine

A step is a plain function that needs no Prefect. `flows`, `deployments`, `tasks.explain`, `tasks.finetuned` and
`tasks.watch` may import this package. It stands on `tasks.exporters`, `tasks.garbage`, `tasks.kinds` and
`tasks.sources`.
"""
