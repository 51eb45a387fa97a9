"""What each new version of TensorRT-LLM means for each model, by the model's own policy.

The rows of a model go from the newest version down to the one that it takes. Each row above that one has the reason why
the model does not take it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from packaging.version import Version

from infra.errors import SpecError, UsageError
from infra.images import Image
from tasks.models.overrides import override
from tasks.models.spec import Model

if TYPE_CHECKING:
    from infra.package_index import Published

Verdict = Literal["unaffected", "rebuild", "kind changes", "not yet available as image", "unsupported", "held back"]


@dataclass(frozen=True)
class Offer:
    """One published version. `avoided`: ENGINEHOUSE_WATCH_AVOID names it as broken."""

    version: Version
    yanked: str | None = None
    image: Image | None = None
    avoided: bool = False


@dataclass(frozen=True)
class Row:
    """One model and one version. `current` is the model's version now. Kinds without TensorRT-LLM have neither."""

    model: str
    current: str
    version: str
    verdict: Verdict
    reason: str


def offers(
    published: Iterable[Published], images: Mapping[Version, Image], avoid: Iterable[str] = ()
) -> tuple[Offer, ...]:
    """The published versions with their image, newest first."""
    avoided = {Version(version) for version in avoid}
    found = [Offer(each.version, each.yanked, images.get(each.version), each.version in avoided) for each in published]
    return tuple(sorted(found, key=lambda offer: offer.version, reverse=True))


def listed(images: Mapping[Version, Image], avoid: Iterable[str] = ()) -> tuple[Offer, ...]:
    """The versions that there are images of, newest first: those that are known without asking anybody."""
    avoided = {Version(version) for version in avoid}
    return tuple(Offer(each, None, images[each], each in avoided) for each in sorted(images, reverse=True))


def version_in_use(model: Model, followed: str | None) -> str | None:
    """The version that a rebuild takes by default: the one in the model's file, or a newer one it was moved to.

    `followed` counts as long as the file's policy allows it. Returns None for a kind without TensorRT-LLM.
    """
    runtime = model.recipe.planned_runtime
    if runtime is None:
        return None
    own = runtime.version
    if followed is None or Version(followed) <= own or model.updates.refuses(Version(followed)):
        return str(own)
    return followed


def judge(model: Model, current: str | None, offered: Iterable[Offer]) -> tuple[Row, ...]:
    """The rows of one model, newest version first. Of versions with equal verdict and reason the newest has the row."""
    if current is None:
        return (Row(model.name, "", "", "unaffected", f"kind {model.kind} has no TensorRT-LLM"),)
    rows: dict[tuple[Verdict, str], Row] = {}
    for offer in offered:
        if offer.version <= Version(current):
            break
        verdict, reason = _verdict(model, offer)
        rows.setdefault((verdict, reason), Row(model.name, current, str(offer.version), verdict, reason))
        if verdict == "rebuild":
            break
    return tuple(rows.values()) or (Row(model.name, current, current, "unaffected", "there is no newer version"),)


def _verdict(model: Model, offer: Offer) -> tuple[Verdict, str]:
    version = str(offer.version)
    refused = model.updates.refuses(offer.version)
    if refused is not None:
        return "held back", refused
    if offer.yanked is not None:
        return "held back", f"withdrawn from the index{': ' if offer.yanked else ''}{offer.yanked}"
    if offer.avoided:
        return "held back", "named in ENGINEHOUSE_WATCH_AVOID"
    if (kind := model.recipe.successor(version)) is not None:
        return "kind changes", _as_successor(model, kind, version)
    if reason := model.recipe.unsupported(offer.version):
        return "unsupported", reason
    try:
        override(model, tensorrt_llm=version)
    except SpecError as error:
        return "unsupported", error.message.partition(": ")[2] or error.message
    if offer.image is None:
        return "not yet available as image", "the list of images has none with it"
    return "rebuild", f"in {offer.image}"


def _as_successor(model: Model, kind: str, version: str) -> str:
    try:
        lost = override(model, recipe={"kind": kind}, tensorrt_llm=version).lost
    except (SpecError, UsageError) as error:
        reason = error.message.partition(": ")[2] or error.message
        return f"it builds no engines, and kind {kind} does not take this recipe: {reason}"
    without = f", without {', '.join(lost)}" if lost else ""
    return f"it builds no engines; kind {kind} takes this recipe{without} (enginehouse plan --runtime {version})"
