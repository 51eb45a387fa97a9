"""Where weights come from: `hf://`, `s3://`, `file://` and `pip://`.

Begin with `dispatch`: `resolve` pins a source to something immutable without downloading weights, `fetch` downloads
exactly that and compares every file with its pin. `hf`, `s3`, `file` and `pip` are the schemes. `resolved` has the
values that pass between the two, and `download` brings bytes to the disk. `names` and `contents` say what a snapshot
may hold; `accepts` says which sources an event from outside may name.

Imports `tasks.models`, the module `header` of `tasks.gguf`, and `infra`. The steps, `finetuned` and everything above
them may import it.
"""
