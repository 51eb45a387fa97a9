"""What weights are, read from their small files: `config.json` and what lies beside it.

Begin with `facts`, the frozen value, and `config`, which reads it. `fields` reads a value of `config.json`, or the one
that its class has by itself; `classes` knows these classes. `layers` says what each layer keeps in the KV cache,
`states` what layers without attention keep, `quantized` how a checkpoint is quantized already, and `files` what a list
of files lacks.

Imports `infra`. `tasks.trtllm`, the sources and everything above them may import it.
"""
