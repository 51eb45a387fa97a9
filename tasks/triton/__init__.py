"""What Triton reads: the models of a release, their configurations, and the public name.

Begin with `repository`, which writes a release as an artifact, and `placement`, which a node uses to put it before
Triton. `config` writes the `config.pbtxt` of `llm`, `release` and the public name, `backend_config` that of
`tensorrt_llm`; `compatibility` checks that they fit together. `protobuf` gives Triton's message its types. The modules
`upstream*` fill NVIDIA's own templates instead.

Imports `tasks.trtllm`, `tasks.serving`, `tasks.store` and `infra`. The kinds, the steps and everything above them may
import it.
"""
