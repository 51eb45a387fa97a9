"""The embedded stack of `enginehouse up`, on loopback: S3, Prefect with two workers, a node with its Triton, a gateway.

Begin with `lifecycle.py`: up, down, status. `services.py` describes the services, `starting.py` brings them up,
`registration.py` registers the flows, `home.py` is the folder that keeps it all. The command line imports it.
"""
