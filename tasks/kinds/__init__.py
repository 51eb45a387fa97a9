"""Kinds: what can be served, one module each, behind one protocol.

Begin with `protocol`: an `EngineKind` holds a model and answers for its steps, identities, GPUs and memory.
`choice.engine_kind` makes the one of a model. `llamacpp`, `llmapi` and `trt_engine` are the kinds; `tensorrt_llm` is
the base of the last two, and `engine_release` writes the Triton models of an engine. A new kind is a module, an entry
in `choice.KINDS` and a recipe in `tasks.models.recipe`; no flow changes.

`tasks.steps` and the rooms above it import this one, and so do `flows` and `deployments`.
"""
