"""Where TensorRT-LLM is, what it holds and how its tools are called. Enginehouse never imports `tensorrt_llm`.

Begin with `toolchain.py`, the protocol. `choose.py` picks by the setting ENGINEHOUSE_TOOLCHAIN: `interpreter.py` for an
interpreter on this machine, `docker.py` for an image, `pinned.py` for an environment made from `pins/`. `finding.py`
runs `report_probe.py` in the toolchain, where nothing of Enginehouse is installed. Tasks and deployments import it.
"""
