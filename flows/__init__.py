"""The DAGs: which step follows which, and the Prefect layer over the steps.

    names                 every flow by name; imports no Prefect
    rebuild               the main flow, from a source to a public name: begin reading with it
    build_engine          its child: convert, build and upload on the work pool of an architecture
    finetuned             take an event that names new weights
    watch_releases        look for new versions of TensorRT-LLM
    approve               a person's decision on a candidate, and what follows; `approval_page` is what they see
    rollback, collect_garbage, reconcile

    flow_runs             how a flow runs as a run of Prefect: tags, states; `failure` makes a state of an error
    fleet_page            the fleet as the artifact `fleet`
    steps                 the steps as tasks; the work is in `tasks.steps`
    task_runs             how a step runs as a task: retries, states
    telling               what a running step says of how far it is
    build_on_pool         start the child flow, or attach to one that runs; `build_waiters` knows who else waits, and
                          `build_log` what the child is at
    current_rebuild       what a rebuild keeps of itself; `report` is what its caller sees
    lost_runs             runs whose process or parent died
    traces                the spans of runs, where traces are wanted
    patience, run_filters, ui

`deployments` may import this package. It stands on `tasks` and `infra`. Each flow's docstring is its text in the UI of
Prefect, and the part `Args` describes the fields of its form.
"""
