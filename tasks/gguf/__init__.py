"""GGUF, the file format of llama.cpp: read, dequantize, quantize, all in little memory.

Begin with `conversion`, the convert and build of the kind `llamacpp`. `tensor_types` decides which type each tensor
gets, and `rewrite` writes the new file chunk by chunk. `file` has the container's values, `reader` and `writer` its
header, and `limits` what serving has to know of a model.

Imports `infra`. `tasks.lora`, the kinds and everything above them may import it.
"""
