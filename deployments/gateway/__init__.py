"""`enginehouse gateway`: the stateless front of one or several targets, for clients over HTTP and gRPC.

The command line and the embedded stack start it; nothing else imports it. Begin with `front.py`: one request, from the
client's key to the last response. `state.py` knows the targets, `balance.py` chooses the node, `triton.py` asks it.
`http_door.py` and `grpc_door.py` are the ways in, `triton_routes.py` is what comes in by HTTP, `serve.py` runs it all.
`openai/` translates OpenAI's API to the serving contract, and knows nothing of the rest.
"""
