"""Where weights come from: `hf://`, `s3://`, `ngc://`, `models:/`, `file://` and `pip://`.

Begin with `dispatch`: `resolve` pins a source to something immutable without downloading weights, `fetch` downloads
exactly that and compares every file with its pin. `hf`, `s3`, `ngc`, `mlflow`, `file` and `pip` are the schemes.
`resolved` has the values that pass between the two, `download` brings bytes to the disk, and `rest` asks servers that
have no client of their own here. `names`, `forms` and `contents` say what a snapshot may hold; `accepts` says which
sources an event from outside may name.

Imports `tasks.models`, the modules `header` and `parts` of `tasks.gguf`, and `infra`. The steps, `finetuned` and
everything above them may import it.
"""
