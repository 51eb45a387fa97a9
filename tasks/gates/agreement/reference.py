"""The reference of the gate of agreement: when a candidate is compared with it, and what it says at each place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from pydantic import JsonValue

from infra.triton.client import TritonClient
from tasks.gates.agreement.passages import Passage, bundled, passages_of
from tasks.gates.agreement.positions import AskNext, OtherFailed, Token, counts_tokens
from tasks.gates.agreement.reading import Beside
from tasks.gates.protocol import FoundReference, Served, Trial
from tasks.gates.sets import read_set
from tasks.models.gate_specs.agreement import AgreementSpec
from tasks.store.identity import canonical
from tasks.store.reference import ReferenceTokens
from tasks.targets.release import Intent

_PRECISION = ("kind", "dtype", "quantization", "kv_cache_dtype")
"""Fields of recipes that say in which numbers the weights are, and what computes with them."""


def read_passages(asked: AgreementSpec) -> tuple[Passage, ...]:
    """Those that the model's file asks for. Raises UsageError `set-missing`, `set-invalid`, `set-changed`."""
    return bundled() if asked.passages is None else passages_of(read_set(asked.passages))


def is_wanted(asked: AgreementSpec, candidate: Mapping[str, JsonValue], live: Intent | None) -> bool:
    """Whether a candidate of this recipe is compared with the reference too. `live` is what stands loaded beside it, if
    anything."""
    match asked.reference:
        case "never":
            return False
        case "always":
            return True
        case "auto":
            return live is None or any(candidate.get(name) != live.recipe.get(name) for name in _PRECISION)


def places(passages: Sequence[Passage], positions: int) -> Iterator[tuple[Passage, str]]:
    """Each passage with each beginning of it after which the next token is asked for."""
    for passage in passages:
        yield from ((passage, prefix) for prefix in passage.prefixes(positions))


def identity_of(passages: Sequence[Passage], positions: int) -> Mapping[str, JsonValue]:
    """What of the places a reference depends on."""
    texts = [[passage.name, passage.text] for passage in passages]
    return {"passages": f"sha256:{hashlib.sha256(canonical(texts)).hexdigest()}", "positions": positions}


def find(trial: Trial, asked: AgreementSpec) -> FoundReference | None:
    """The reference to compare with. None where the file asks for none here.

    Raises StoreError and UsageError.
    """
    live = None if trial.live is None else trial.live.intent
    return trial.find_reference(asked) if is_wanted(asked, trial.candidate.intent.recipe, live) else None


def beside(tokens: ReferenceTokens, passages: Sequence[Passage], asked: AgreementSpec, candidate: Served) -> Beside:
    """The reference as what a candidate is compared with. It needs no node."""
    counts = counts_tokens(candidate)
    said = {(each.passage, each.cut): Token(each.text, each.tokens if counts else None) for each in tokens.tokens}
    answers = {
        prefix: said[key]
        for passage, prefix in places(passages, asked.positions)
        if (key := (passage.name, len(prefix))) in said
    }

    def asker(_: TritonClient) -> AskNext:
        def ask(prefix: str) -> Token:
            if prefix not in answers:
                raise OtherFailed(f"no answer after {prefix[-60:]!r}")
            return answers[prefix]

        return ask

    return Beside("reference", asked.reference_margin, counts, asker)
