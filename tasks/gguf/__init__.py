"""GGUF, the file format of llama.cpp: read, dequantize, quantize, all in little memory.

Begin with `conversion`, the convert and build of the kind `llamacpp`. `tensor_types` decides which type each tensor
gets, and `rewrite` writes the new file chunk by chunk. `file` has the container's values, `header` its first
bytes, `parts` the names of a model in several files, `reader` and `writer` all before the tensors, and `limits` what
serving has to know of a model.

Imports `infra`. `tasks.lora`, the kinds, the sources (`header` and `parts` alone: the package `gguf` is an extra) and
everything above them may import it.
"""
