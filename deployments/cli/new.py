"""`enginehouse new`: a model's file from what a repository of the hub says of its weights."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from packaging.version import Version

from deployments.cli.init_command import SCHEMA
from infra.errors import SourceError, SpecError, UntrustedFile, UsageError
from infra.files import replace_file
from infra.positioned_yaml import read_yaml
from tasks.models.catalogue import catalogue_file, load_model
from tasks.models.source import Source
from tasks.models.source_uri import HubUri, glob_match, parse_source
from tasks.sources.dispatch import fetch, resolve
from tasks.sources.names import select
from tasks.sources.resolved import Access, ResolvedSource
from tasks.sources.survey import survey
from tasks.steps.new_file import file_text
from tasks.steps.new_model import Proposal, Weights, propose

_WITHOUT_CODE = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "LICENSE*")
"""What is taken of a repository that holds files which can run code."""
_CARD = "README.md"
_FRONT = re.compile(r"\A---\s*\n(?P<yaml>.*?)\n---\s*\n", re.DOTALL)
_LARGEST_CARD = 1 << 20
_SPLIT = re.compile(r"-\d{5}-of-(\d{5}\.gguf)$")


def new_model(
    folder: Path, address: str, *, name: str, gpu: str, target: str, versions: Iterable[Version], access: Access
) -> tuple[Path, Proposal]:
    """Write the file of a model of the repository `hf://org/repo[@revision]` into the catalogue in `folder`.

    Raises UsageError `model-exists`, SourceError `source-invalid` for another address, and as `resolve`, `survey` and
    `propose` do.
    """
    uri = _parsed(address)
    name = name or _name_of(uri.repository)
    if (there := catalogue_file(folder, name)) is not None:
        raise UsageError(
            f"{there} is there already",
            hint="give another name with --name, or remove that file",
            code="model-exists",
        )
    proposal = propose(weights_of(uri, access), name, gpu, versions, target)
    has_schema = (folder.parent / SCHEMA).is_file()  # as `enginehouse init` leaves it
    path, text = folder / f"{name}.yaml", file_text(proposal, f"../{SCHEMA}" if has_schema else "")
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / path.name
        made.write_text(text)
        assert load_model(made) == proposal.model, "the file says what was proposed"
    replace_file(path, text.encode())
    return path, proposal


def weights_of(uri: HubUri, access: Access) -> Weights:
    """What a repository says of its weights and of its licence. Raises as `resolve` and `survey` do."""
    source = Source(uri=str(uri))
    try:
        resolved, include = resolve(source, access), ()
    except UntrustedFile:
        resolved, include = _without_code(source, uri, access)
    known = Weights(str(uri), include, licence=_licence(source, access))
    if gguf := _gguf(resolved):
        return replace(known, gguf=gguf, include=(gguf,))
    return replace(known, facts=survey(resolved, access))


def _without_code(source: Source, uri: HubUri, access: Access) -> tuple[ResolvedSource, tuple[str, ...]]:
    """The source without files that can run code, and the patterns by which a model's file says so."""
    from tasks.sources import hf  # the hub's client is slow to import

    taken: tuple[str, ...] = ()

    def choose(source: Source, names: Sequence[str]) -> list[str]:
        nonlocal taken  # a pattern that matches nothing would be a mistake of the file
        taken = tuple(each for each in _WITHOUT_CODE if any(glob_match(each, name) for name in names))
        return select(source.model_copy(update={"include": taken}), names)

    return hf.resolve(source, uri, access, choose=choose), taken


def _parsed(address: str) -> HubUri:
    """Without a revision it is that of the branch `main`."""
    found = parse_source(address if "@" in address else f"{address}@main")
    if not isinstance(found, HubUri):
        raise SourceError(
            f"{address} is no repository of the hub",
            hint="name one as hf://org/repo or hf://org/repo@revision; files for other sources are written by hand",
        )
    return found


def _name_of(repository: str) -> str:
    """The repository's own name in the form of a model's: `Meta-Llama-3-8B` is `meta-llama-3-8b`."""
    name = re.sub(r"[^a-z0-9.]+", "-", repository.partition("/")[2].lower()).strip("-.")
    if not name:
        raise SpecError(f"{repository} makes no model's name", hint="give one with --name")
    return name


def _gguf(resolved: ResolvedSource) -> str:
    """The GGUF to take of a repository that has nothing else: the least quantized. Of a split one its pattern."""
    names = {file.path: file.size or 0 for file in resolved.files}
    if any(name.endswith(".safetensors") for name in names):
        return ""
    found = [name for name in names if name.endswith(".gguf")]
    if not found:
        return ""

    def rank(name: str) -> tuple[int, int]:
        words = [n for n, word in enumerate(("bf16", "f16", "q8_0")) if word in name.lower()]
        return (min(words, default=3), -names[name])

    return _SPLIT.sub(r"-*-of-\1", min(found, key=rank))


def _licence(source: Source, access: Access) -> str:
    """What the model card says; empty where it says nothing, or is not there."""
    try:
        card = resolve(source.model_copy(update={"include": (_CARD,)}), access)
        with tempfile.TemporaryDirectory() as scratch:
            if card.known_bytes > _LARGEST_CARD:
                return ""
            fetch(card, Path(scratch), lambda done, total: None, access)
            front = _FRONT.match((Path(scratch) / _CARD).read_text(errors="replace"))
            if front is None:
                return ""
            document, problems = read_yaml(front["yaml"])  # of somebody else: bounded in size and depth
    except SourceError:
        return ""
    value = None if document is None or problems else document.value
    if not isinstance(value, Mapping):
        return ""
    said = cast("Mapping[object, object]", value)
    names = (said.get(field) for field in ("license_name", "license"))
    return next((" ".join(each.split())[:100] for each in names if isinstance(each, str)), "")
