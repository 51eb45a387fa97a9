"""Load: sends requests to a served model at intended moments, and says how soon it answered.

It imports `tasks.serving` (the names of the contract) and `infra`. Begin with `send`, which keeps the moments, and
`measure`, which runs it once. `arrivals`, `trace`, `lengths` and `prompts` say when what is asked. `wire` is what a
protocol does; `triton_sse`, `openai` and `triton_grpc` are those, on the connections of `http_stream`. `outcome` is
what became of a request, `collected` keeps those of a run in bounded memory. `metrics` has the formulas, `summary` the
figures; `text` and `picture` show them, the latter along an `axis`.
"""
