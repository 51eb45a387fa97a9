"""TensorRT-LLM's LLM API, which serves a checkpoint without an engine: from 1.0 on, and alone from 1.3 on.

Begin with `arguments`, the keyword arguments of `tensorrt_llm.LLM`; `known_arguments` checks those of a model's file.
`checkpoint_limits` sizes a checkpoint as `limits` sizes an engine, and `translate` makes a recipe of kind `llmapi` from
one of kind `trt-engine`.
"""
