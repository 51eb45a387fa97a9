"""An S3 server: small objects with conditional writes, large files in parallel parts, and a server of our own.

Everything above `infra` may import it; it imports only `infra`. Begin with `bucket`, one prefix of a bucket and all the
requests that records need. `upload` and `download` carry large files, on the threads of `lanes`. `conditional_writes`
finds out whether a server can be trusted, and `seaweedfs` starts the server of the embedded stack.
"""
