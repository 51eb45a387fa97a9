"""Fine-tuning events: what they may name, and what the store keeps of them.

    event            the payload of an event, and the model that it makes: begin reading with it
    plain_json       which documents from outside can be kept
    arrivals         events in the order in which they came, and what was decided on them
    records          accepted weights, and which of them a rebuild takes
    moved_branches   weights that changed on the hub without an event
    renamed          the former names of repositories of the hub

`flows`, `deployments` and `tasks.explain` may import this package. It stands on `tasks.steps`.
"""
