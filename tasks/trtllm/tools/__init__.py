"""TensorRT-LLM's command line tools: which command a recipe becomes, and how it runs.

Begin with `commands`. It writes a recipe as commands, by the table in `options`. `run` runs a command in its toolchain:
`own_help` checks it before, `failures` names what went wrong, `check` looks at what a tool left. `modelopt_quantize` is
a tool of ours; the toolchain's own interpreter runs it by its path.
"""
