"""The outside world: machines, servers and libraries. It knows nothing of models, artifacts or releases.

    s3/          the object store, its conditional writes, and SeaweedFS
    triton/      the server: command lines, installations, a client, a supervisor
    toolchains/  where TensorRT-LLM is, and how its tools are called
    processes/   servers and tools as processes, and their end
    pools/       job templates of Docker and Kubernetes work pools

Beside them are settings, errors and small helpers, and what containers are made from: Dockerfile, compose.yaml,
kubernetes/ and policies/. Everything may import it; it imports nothing of Enginehouse. Begin with `settings.py` and
`errors.py`.
"""
