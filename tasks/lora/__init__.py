"""LoRA adapters: small weights that are added to those of a model, once, before it is converted.

Begin with `merge`, for snapshots in safetensors, or `gguf_merge`, for a GGUF. `config` reads what an adapter says of
itself, `adapter` what PEFT saved, `names` knows a matrix by each of its names, and `tensors` reads and changes tensors
in their file.

Imports `tasks.gguf` and `infra`. The kinds, the steps and everything above them may import it.
"""
