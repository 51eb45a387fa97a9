"""The text of a model's file that nobody has written yet, with the reasons for what it says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from tasks.steps.new_model import Proposal

_KINDS = {
    "llmapi": "TensorRT-LLM loads the checkpoint itself: nothing is built ahead. Its successor for all versions.",
    "trt-engine": "An engine is built ahead, on a GPU of this product: minutes, once for each recipe.",
    "llamacpp": "The GGUF is dequantized, quantized to `quantization`, and served by llama.cpp on the CPU.",
    "transformers": "PyTorch, as the weights are: slow and right. With --gpu, `enginehouse new` writes a fast one.",
}


def file_text(proposal: Proposal, schema: str = "") -> str:
    """The file, as YAML that says just the proposal's document. `schema` is where editors find the schema, if there."""
    head = [f"# yaml-language-server: $schema={schema}"] if schema else []
    return "\n".join([*head, *_lines(proposal)]) + "\n"


def _lines(proposal: Proposal) -> Iterator[str]:
    document, name = proposal.document, proposal.model.name
    facts = proposal.weights.facts
    yield "# Written by `enginehouse new` from what the weights say of themselves. It is yours now: change it,"
    yield f"# and `enginehouse plan {name}` says what it makes. What it leaves out has a default."
    yield f"name: {_flow(name)}"
    if facts is not None:
        yield f"# {facts}."
    yield f"description: {_flow(document['description'])}"
    yield "source:"
    yield "  # A branch: `reconcile` rebuilds what is pushed to it. A commit of 40 digits never changes."
    yield f"  uri: {_flow(document['source']['uri'])}"
    if include := document["source"].get("include"):
        yield "  # Nothing else of the repository is taken."
        yield f"  include: {_flow(include)}"
    yield "recipe:"
    yield f"  # {_KINDS[proposal.model.kind]}"
    yield from _recipe(document["recipe"])
    yield from _serving(proposal)
    yield "# Where it is served: the targets whose nodes can hold it."
    yield f"targets: {_flow(document['targets'])}"
    yield "# What a candidate is asked before traffic moves to it. Add questions whose answers you know."
    yield "prompts:"
    for prompt in document["prompts"]:
        first, *others = prompt.items()
        yield f"  - {first[0]}: {_flow(first[1])}"
        yield from (f"    {field}: {_flow(value)}" for field, value in others)


def _recipe(recipe: Mapping[str, Any]) -> Iterator[str]:
    gpus = recipe.get("tp_size", 0)
    for field, value in recipe.items():
        if field == "runtime":
            yield f"  # The fewest GPUs of one host that hold weights and cache. Each model takes {gpus}."
        if field == "max_input_len":
            yield "  # Tokens of a prompt, of prompt and answer together, requests at once, and tokens of one pass."
            yield "  # All take memory of the GPU. These fit; `enginehouse plan` tells the rest."
        if field != "tp_size" or value > 1:
            yield f"  {field}: {_flow(value)}"


def _serving(proposal: Proposal) -> Iterator[str]:
    serving, facts = proposal.document["serving"], proposal.weights.facts
    yield "serving:"
    yield "  # Requests that generate at the same time, and the tokens that each may have."
    yield f"  slots: {serving['slots']}"
    context = serving["context_tokens"]
    if facts is not None and facts.context is not None and facts.context > context:
        yield f"  # The model was made for {facts.context}: more of them leave room for fewer requests."
    yield f"  context_tokens: {context}"
    if "chat_template" in serving:
        yield "  # The weights have no chat template: prompts go to the model as they come."
        yield f"  chat_template: {_flow(serving['chat_template'])}"


def _flow(value: object) -> str:
    """A value in one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()
