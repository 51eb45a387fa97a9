"""A campaign on one real GPU, without a network: the whole rebuild, memory, promotions, faults, ModelOpt, gates.

    python -m tests.gpu            # every part
    python -m tests.gpu 1 2        # some of them

It starts every server itself, ends them, and prints one table. Exit code 1: a goal was missed. The machine needs the
packages of the project, PyTorch and transformers; docs/measured-on-a-gpu.md says how to bring them, and what was found.

| variable | |
|---|---|
| ENGINEHOUSE_GPU_SIZES | `short`: the same models, fewer turns. `tiny`: on the CPU, by which the campaign is tested |
| ENGINEHOUSE_GPU_FOLDER | where models and servers lie (45 GiB); a temporary folder if it is not set |
| ENGINEHOUSE_GPU_GGUF | the file SmolLM2-135M-Instruct.Q4_1.gguf; else it is fetched as the tests do |
| ENGINEHOUSE_GPU_TOOLCHAIN | a Python with PyTorch, transformers, datasets and ModelOpt, for part 5 |
"""
