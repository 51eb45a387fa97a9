"""The facts of a source's weights, from its list of files and its small files, before anything large is fetched."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from infra.errors import SourceError
from tasks.models.source import Source
from tasks.models.source_uri import FileUri, PipUri, parse_source
from tasks.serving.generation import FILE as GENERATION
from tasks.serving.generation import GenerationConfig
from tasks.serving.templates import DEFAULT, TEMPLATE_FILES, read_templates
from tasks.sources import file
from tasks.sources.contents import LARGEST_JSON_BYTES
from tasks.sources.dispatch import fetch, resolve, resolve_about, snapshot_files
from tasks.sources.resolved import NO_ACCESS, Access, ResolvedSource
from tasks.weights.config import CONFIG, CONFIG_FILES, read_facts
from tasks.weights.facts import WeightsFacts
from tasks.weights.fields import unreadable
from tasks.weights.files import INDEX, require_shards, require_weight_files, with_files

_SMALL_FILES = frozenset({*CONFIG_FILES, INDEX, GENERATION, *TEMPLATE_FILES})
_STORED_BY_LFS = (".safetensors", ".bin", "tokenizer.json", ".model")
_LARGEST_POINTER_BYTES = 1024
"""Git LFS's own limit of a pointer. No file of weights is as small."""


def survey(resolved: ResolvedSource, access: Access = NO_ACCESS) -> WeightsFacts:
    """The facts of a resolved source.

    Raises SourceError `config-unreadable`, also for one without `config.json`, `weights-missing`, `shards-missing` and
    `generation-unfit`, UntrustedFile `lfs-pointer`, and as `fetch` does.
    """
    sizes = _sizes(resolved)
    with _named(resolved.uri):
        require_weight_files(sizes)
        return _survey(resolved, sizes, access)


def survey_like(resolved: ResolvedSource | None, access: Access = NO_ACCESS) -> WeightsFacts | None:
    """The facts of weights that have to be exported first, from a model with their configuration, if one is named.

    Their files and sizes are not among the facts. Raises as `survey` does.
    """
    if resolved is None:
        return None
    with _named(resolved.uri):
        return _survey(resolved, _sizes(resolved), access)


def survey_source(source: Source, access: Access = NO_ACCESS) -> WeightsFacts | None:
    """The facts of a source that nobody has resolved. It reads no large file, which the pin of a folder would need.

    Raises as `survey` and `resolve` do.
    """
    if source.form is not None:
        return survey_like(None if source.like is None else resolve_about(source.like, access), access)
    match parse_source(source.uri):
        case PipUri():
            raise unreadable(CONFIG, "is missing: pip:// names one file, and weights are several")
        case FileUri() as uri:
            sizes = file.sizes(source, uri)
            with _named(source.uri):
                require_weight_files(sizes)
                _require_config(sizes)
            small = tuple(name for name, size in sizes.items() if _is_small(name, size))
            resolved = resolve(source.model_copy(update={"include": small}), access)
            with _named(source.uri):
                return _survey(resolved, sizes, access)
        case _:
            return survey(resolve(source, access), access)


def _sizes(resolved: ResolvedSource) -> Mapping[str, int | None]:
    return {name: each.size for name, each in snapshot_files(resolved).items()}


@contextmanager
def _named(uri: str) -> Generator[None]:
    """Errors name the source: a model may have several, as that of what guesses its tokens."""
    try:
        yield
    except SourceError as error:
        error.message = f"{uri}: {error.message}"
        raise


def _survey(resolved: ResolvedSource, sizes: Mapping[str, int | None], access: Access) -> WeightsFacts:
    _require_config(sizes)
    wanted = tuple(each for name, each in snapshot_files(resolved).items() if _is_small(name, each.size))
    with tempfile.TemporaryDirectory() as folder:
        fetched = fetch(replace(resolved, files=wanted), Path(folder), lambda done, total: None, access)
        texts = {each.path: (Path(folder) / each.path).read_bytes() for each in fetched}
    require_shards(sizes.keys(), texts.get(INDEX))
    facts = with_files(read_facts(texts), sizes)
    try:
        generation, templates = GenerationConfig.of(texts.get), read_templates(texts.get)
    except ValueError as error:
        raise SourceError(
            f"what the weights say of their answers cannot be followed: {error}",
            code="generation-unfit",
            hint="mend the file where the weights come from, or leave it out with `include:`",
        ) from error
    return replace(facts, generation=generation, has_template=DEFAULT in templates)


def _require_config(sizes: Mapping[str, int | None]) -> None:
    if CONFIG not in sizes:
        raise unreadable(CONFIG, "is missing")
    if not _is_small(CONFIG, sizes[CONFIG]):
        raise unreadable(CONFIG, f"has {sizes[CONFIG]} bytes, and {LARGEST_JSON_BYTES} are the most that is read")


def _is_small(name: str, size: int | None) -> bool:
    if name in _SMALL_FILES:
        return size is None or size <= LARGEST_JSON_BYTES
    return size is not None and size <= _LARGEST_POINTER_BYTES and name.endswith(_STORED_BY_LFS)
