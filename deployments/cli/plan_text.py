"""A plan for people, in lines that fit a terminal. Its commands stay whole, so that they can be pasted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from deployments.cli.columns import fitted
from deployments.cli.people import size
from deployments.cli.plan import Preview
from deployments.cli.plan_outlook_text import duration, memory_lines, outlook_lines
from tasks.kinds.protocol import PlannedCache
from tasks.models.rollout import Rollout
from tasks.serving.generation import FILE
from tasks.sources.resolved import ResolvedSource
from tasks.trtllm.architectures import LLAMA
from tasks.trtllm.releases import LAST
from tasks.weights.facts import WeightsFacts


def lines(shown: Preview, prices: Mapping[str, float], width: int) -> Iterator[str]:
    """The preview in lines of at most `width` characters, and the commands, each in one line of its own."""
    for line in _prose(shown, prices):
        yield from fitted(line, width)
    yield from (shlex.join(argv) for argv in shown.kind.commands(shown.facts))


def _prose(shown: Preview, prices: Mapping[str, float]) -> Iterator[str]:
    kind, mode = shown.kind, shown.kind.serving_mode()
    yield f"{shown.model.name}  kind {shown.model.kind}, built on pool {kind.pool()}"
    if (runtime := shown.model.recipe.planned_runtime) is not None:
        assumed = "" if shown.image else " (assumed)"
        yield (
            f"TensorRT-LLM {runtime.tensorrt_llm} on {runtime.gpus} x {runtime.gpu} ({runtime.arch}), "
            f"TensorRT {runtime.planned_tensorrt or 'unknown'}{assumed}"
        )
        if runtime.image is not None:
            yield f"in {runtime.image}"
    yield f"served in mode {mode.mode}: {mode.why}"
    yield _answers_line(shown)
    yield from _waves_lines(shown.model.rollout)
    if shown.weights is not None:
        yield _source_line(shown.weights.source)
    if shown.facts is not None:
        yield from _facts_lines(shown.facts, kind.planned_cache(shown.facts))
    elif (architecture := shown.model.recipe.planned_architecture) is not None:
        yield f"architecture: {architecture}, by the recipe"
    elif kind.tool_release() is not None:
        yield f"architecture: not named in the recipe, so {LLAMA} is shown; a rebuild goes by the weights' config.json"
    if (release := kind.tool_release()) is not None and not release.exact:
        yield f"its options are known only from the nearest sources: {release.read_in}"
    if (translation := shown.translation) is not None:
        yield f"instead of kind trt-engine, which ends with TensorRT-LLM {LAST}:"
        for old, new in translation.moved.items():
            yield f"  {old} is now {new}"
        for lost in translation.lost:
            yield f"  {lost} has no counterpart"
    yield from memory_lines(shown)
    if shown.outlook is not None:
        yield from outlook_lines(shown, shown.outlook, prices)


def _source_line(source: ResolvedSource) -> str:
    known = [
        f"commit {str(source.pin['commit'])[:12]}" if "commit" in source.pin else "",
        f"{len(source.files)} file{'s' * (len(source.files) != 1)}",
        size(source.known_bytes) if source.known_bytes else "",
        f"licence {source.licence}" if source.licence else "",
        "gated, and this machine may read it" if source.gated else "",
    ]
    return f"source: {source.uri}, {', '.join(filter(None, known))}"


def _answers_line(shown: Preview) -> str:
    own: dict[str, float] = shown.model.serving.defaults.model_dump(exclude_none=True)
    generation = None if shown.facts is None else shown.facts.generation
    known: Mapping[str, float] = {} if generation is None else generation.sampling
    weights = {name: value for name, value in known.items() if name not in own}
    said = [
        f"{', '.join(f'{name} {value:g}' for name, value in values.items())} by {whom}"
        for values, whom in ((own, "the model's file"), (weights, FILE))
        if values
    ]
    sampled = f"answers: {', '.join(said) or 'sampled as the engine does by itself'}"
    if not shown.kind.reads_config:
        return sampled
    if generation is None:
        return f"{sampled}; what {FILE} of the weights says is known once it is read"
    ends = ", ".join(map(str, generation.end_ids))
    return f"{sampled}; they end at the tokenizer's own end{f' and at {ends}' if ends else ''}"


def _waves_lines(rollout: Rollout) -> Iterator[str]:
    for number, wave in enumerate(rollout.waves, 1):
        soak = f", then {duration(wave.soak)} until the next" if wave.soak else ""
        yield f"wave {number} of {len(rollout.waves)}: {', '.join(wave.targets)}{soak}"
    if rollout.waves:
        back = (
            "gives the previous release back on all of them" if rollout.on_refusal == "all_back" else "stops it there"
        )
        yield f"a target that refuses the release {back}"


def _facts_lines(facts: WeightsFacts, planned: PlannedCache) -> Iterator[str]:
    yield f"weights: {facts}"
    if facts.draft is not None:
        yield f"draft: {facts.draft}"
    if planned.bytes_per_token is None:
        yield f"KV cache: a share of the memory, as it is not understood: {facts.unclear}"
    else:
        tokens = "" if planned.tokens is None else f", {planned.tokens} tokens planned"
        yield f"KV cache: {size(planned.bytes_per_token)} a token on each GPU{tokens}"
    yield from planned.notes
