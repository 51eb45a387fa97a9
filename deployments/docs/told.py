"""What helps against an error whose place in the source says nothing, since it is told to a program or found elsewhere.

A test holds this table to the codes that need it: one that the source explains has no entry.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Told:
    """`means` is empty where the source says what happened."""

    remedy: str
    means: str = ""


_CLIENT = "Correct the request: the message names the field and the limit."
_LATER = "Ask again later; where there is a header `Retry-After`, after so many seconds."
_EVENT = "Correct the event. It is kept in the store as `events/ID.json`, with what was decided and why."
_NODE_LOG = "Look at the node's log and at `triton.log` beside it."

TOLD: dict[str, Told] = {
    "adapter-unfit": Told("Take an adapter that was trained on this model, by a method that is taken (New weights)."),
    "approval-needed": Told("", means="A candidate has passed its gates, and the model's file wants a person's word."),
    "bodies-limit": Told(_LATER),
    "body-slow": Told("Send the whole request at once. Behind a proxy, let the proxy take the body in first."),
    "cancelled": Told("Ask again.", means="The server ended the request, or its client did."),
    "client-left": Told("Nothing is to be done: the client ended the connection, or took nothing of its answer."),
    "context-length": Told(
        "Send a shorter prompt, or fewer `max_tokens`; the model's file has `serving.context_tokens`.",
        means="Prompt and answer together are longer than the model's context.",
    ),
    "deadline": Told("Ask for less, or raise `serving.request_timeout_s` or ENGINEHOUSE_GATEWAY_DEADLINE_SECONDS."),
    "disk-denied": Told("", means="ENGINEHOUSE_HOME cannot be written by this user."),
    "event-large": Told(_EVENT),
    "event-model": Told("Name a model of the catalogue that the workers have."),
    "event-overtaken": Told(
        "Nothing is to be done where the newer weights are wanted; else name the weights in the file."
    ),
    "event-recipe": Told(
        _EVENT, means="The event sets a field of the recipe that it has not, or to what it cannot be."
    ),
    "event-slow": Told("Send the whole body within the time that the message names."),
    "event-unreadable": Told("Send the event again. The record is kept beside the others, for whoever looks into it."),
    "gateway-tls": Told("Set both, or neither, to PEM files that the gateway's user may read."),
    "internal": Told("Look at the gateway's log: it says where, and never a prompt."),
    "key-invalid": Told(
        "Send `Authorization: Bearer KEY`.", means="No key came, or one that the gateway does not know."
    ),
    "key-unknown": Told(
        "Send a key of the file that ENGINEHOUSE_GATEWAY_KEYS names (`enginehouse gateway-key` makes one)."
    ),
    "load-prompts": Told("Correct the file: a line is a prompt, in `.jsonl` an object with `prompt`."),
    "load-trace": Told("Correct the line that the message names: Under load has the form of a trace."),
    "manifest-missing": Told(
        "`enginehouse verify` shows what else is amiss; `enginehouse rebuild` makes the artifact again."
    ),
    "model-busy": Told(_LATER, means="The model takes no more requests for now, or starts again."),
    "model-cancelled": Told("Ask again.", means="The model was told to end this request."),
    "model-failed": Told(_NODE_LOG, means="The engine failed at this request."),
    "model-name": Told("", means="The model has a name that is now one of Enginehouse's own."),
    "node-lost": Told("Ask again. " + _NODE_LOG),
    "pool-paused": Told("", means="A work pool of the Prefect server is paused."),
    "precondition-failed": Told("Run it again: another process wrote the same record first."),
    "release-failed": Told("", means="A node reports that it cannot load a release."),
    "request-invalid": Told(_CLIENT),
    "request-large": Told("Send less: ENGINEHOUSE_GATEWAY_BODY_BYTES is the most.", means="The request is too large."),
    "request-malformed": Told(_CLIENT),
    "requests-limit": Told(_LATER + " ENGINEHOUSE_GATEWAY_REQUESTS and `requests` of the key are the limits."),
    "requests-limited": Told(_LATER, means="Too many requests run, of this key or at the gateway."),
    "sender-unknown": Told("Send to an address of the table in New weights, whose secret the receiver has."),
    "signature-invalid": Told("Find out who altered it, before anything else. Of a webhook: compare the two secrets."),
    "signature-other": Told("Do not use it before you know why. A rebuild makes and signs a release of its own."),
    "state-unknown": Told("Wait a second. If it stays, the gateway does not reach the store: its log says why."),
    "store": Told("The message has the server's own words; `enginehouse doctor store` looks further."),
    "store-addressing": Told("", means="The S3 server wants the bucket in its host name."),
    "store-checksum": Told("", means="The S3 server does not know the checksum that is sent, or misread it."),
    "store-denied": Told("", means="The S3 server refused the credentials, or what was asked with them."),
    "store-encryption-key": Told("", means="The bucket's key of KMS cannot be used."),
    "store-full": Told("", means="The S3 server has no room left, or its quota is used up."),
    "store-missing": Told("Look at ENGINEHOUSE_STORE: the bucket or the object is not there."),
    "store-token-expired": Told("", means="The session token of the S3 credentials has expired."),
    "store-unsupported": Told(
        "Use another S3 server, or a later version: this one lacks a call that Enginehouse needs."
    ),
    "timestamp-old": Told("Set the clocks of sender and receiver, and send the event anew with the time of now."),
    "tokens-limit": Told(_LATER + " `tokens_per_minute` of the key is the limit."),
    "tokens-limited": Told(_LATER, means="The key has used its tokens of this minute."),
    "triton": Told(_NODE_LOG, means="Triton or a node refused, and said nothing that has a code of its own."),
    "triton-backend": Told("", means="The Triton of this machine lacks a backend that releases need."),
    "triton-busy": Told(_LATER, means="Triton is ending, or cannot take the request now."),
    "triton-down": Told("", means="No Triton answers at ENGINEHOUSE_TRITON_HTTP."),
    "triton-invalid": Told("Send the inputs that `GET /v2/models/NAME` lists."),
    "triton-refused": Told(_CLIENT, means="Triton or the model refused the request. The message is theirs."),
    "triton-restricted": Told("", means="The endpoint of Triton is not for clients."),
    "triton-unknown-model": Told("", means="Triton serves no model of this name."),
    "triton-unload": Told(_NODE_LOG + " The agent goes on trying."),
    "unavailable": Told(_LATER, means="Nobody can answer for the model now."),
    "untrusted-size": Told("Name another file, or another distribution."),
    "wave-refused": Told(
        "`enginehouse releases NAME` shows the evidence. The next rebuild goes on with what lacks it."
    ),
    "wave-returned": Told(
        "`enginehouse releases NAME` shows the evidence. The next rebuild begins with the first wave."
    ),
    "weights-quantized": Told(
        "Take what the message names: another kind or version, or weights that are not quantized yet.",
        means="The weights are quantized already, in a form that the kind or its version does not take.",
    ),
}
