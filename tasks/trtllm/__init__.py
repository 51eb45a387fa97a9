"""TensorRT-LLM, whichever version: what a recipe and its serving may say, and what each version makes of that.

Begin with `recipe` (the fields of both TensorRT-LLM kinds), `serving` (`serving.tensorrt_llm` of a model's file) and
`releases` (the versions that are known). Three packages put these into the words of a version, and do not import each
other:

- `tools`: the command lines of the conversion, quantization and build tools, and how a tool runs in its toolchain;
- `backend`: the `tensorrt_llm` model of the C++ backend in Triton, up to the last version with engines;
- `llmapi`: the arguments of `tensorrt_llm.LLM`, and how an engine's recipe becomes one for it.

Beside them, `limits` and `kv_cache` size an engine, `fits` compares a machine with what was planned, `images` keeps
what container images hold, and `known_failures` recognizes errors in logs.

`tasks.triton`, `tasks.models`, `tasks.kinds` and the rooms above them import this one. It imports `tasks.store`,
`tasks.targets` and `infra`.
"""
