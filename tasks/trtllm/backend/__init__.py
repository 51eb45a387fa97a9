"""The `tensorrt_llm` model of TensorRT-LLM's C++ backend in Triton, version by version.

Begin with `parameters` and `tensors`, the two tables of what a version has. `values` writes the serving of a model's
file as parameters, `rules` refuses what a version or an engine cannot do, and `load_failures` names why a model did not
load. `tasks.triton.native` makes the configuration from them.
"""
