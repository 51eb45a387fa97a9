"""OpenAI's API in terms of the serving contract, as plain functions: no network, no server, no Triton.

What the gateway does with a chat, in order (a completion is the same with the other two functions):

    document = parse_body(body)                              bodies.py
    request = parse_chat(document, parsers)                  chat.py, completions.py
    pieces = together([ask(generation) for generation in request.generations])       streams.py
    chat_stream(request, head, pieces)                       chat_answers.py, completion_answers.py
    chat_answer(request, head, pieces)                       or, where `request.stream` is false

`ask` is the gateway's: it sends a `Generation` to a node and gives back an iterator of each `Piece` (`generation.py`),
which raises `GenerationFailed`. Everything here raises `ApiError` (`errors.py`), which has the status, the headers and
the body of the answer. A stream raises it before its first event; after that the error is an event.

Nothing that a client sends is ignored. A field is honoured (`fields.py`, `guides.py`, `messages.py`, `tools.py`), or
has a value that asks for nothing (`NEUTRAL`), or is an error that names it.

`reading.py` reads an answer: reasoning (`reasoning.py`), then tool calls (`tool_formats/`, one module a format). Whole
answers and streams are read by the same code, so they say the same; `answers.py` is what chats and completions share.
`log_probs.py` says what is known of tokens, and
`usage.py` counts them.

Only the gateway imports it. It imports `infra.errors`, limits and codes of `tasks.serving`, and the names of parsers.
"""
