"""Checkpoints of a training framework, made into models in Hugging Face form by the framework's own tool.

Begin with `run`, which finds the tool in its toolchain and runs it. `commands` has the command line of each form, and
`nemo2_to_hf` is the program that NeMo 2's interpreter runs, which has no command of its own for it.

Imports `tasks.models`, `tasks.store` and `infra`. The steps may import it.
"""
