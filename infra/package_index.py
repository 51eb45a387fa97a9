"""The versions of a distribution on the package indexes that this machine's pip is configured with.

It asks for the JSON of PEP 691, and reads the HTML of PEP 503 too. A `file://` index is a folder with one `index.html`
for each distribution. Folders of `find-links` are no indexes and are not read.
"""

from __future__ import annotations

import ast
import json
import re
import ssl
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx2
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import Version

from infra.errors import SettingsError, SourceError, SourceUnavailable

_JSON = "application/vnd.pypi.simple.v1+json"
_HTML = "application/vnd.pypi.simple.v1+html"
_ACCEPT = f"{_JSON}, {_HTML};q=0.2, text/html;q=0.01"
_TIMEOUT_S = 30.0
_PIP_TIMEOUT_S = 60.0
_WHICH_INDEX = "is it the right one, and is it reachable? see: pip config list"


@dataclass(frozen=True)
class Published:
    """One version. `yanked` is the reason, maybe empty, for which all its files were withdrawn (PEP 592), else None."""

    version: Version
    yanked: str | None = None


@dataclass(frozen=True)
class Indexes:
    """Base URLs of simple indexes, and the certificate authorities that pip trusts (a file; empty: the usual ones)."""

    urls: tuple[str, ...]
    certificates: str = ""


def configured(extra: Iterable[str] = ()) -> Indexes:
    """The indexes of pip's own configuration (files and PIP_* variables), then `extra`. Raises SettingsError."""
    options = _pip_options()
    urls: list[str] = []
    if options.get("no-index", "").lower() not in ("1", "true", "yes", "on"):
        urls += [options.get("index-url") or _default_index(), *options.get("extra-index-url", "").split()]
    return Indexes(tuple(dict.fromkeys(url.rstrip("/") for url in [*urls, *extra])), options.get("cert", ""))


def published(distribution: str, indexes: Indexes, *, within_s: float = _TIMEOUT_S) -> tuple[Published, ...]:
    """Every version of `distribution` on any of the indexes, ascending. Each may stay silent for `within_s` seconds.

    Raises SourceUnavailable if one of them does not answer: the answers of the others would look as if nothing were
    new. Raises SourceError if none has the distribution.
    """
    name = canonicalize_name(distribution)
    reasons: dict[Version, list[str | None]] = {}
    trusted = ssl.create_default_context(cafile=indexes.certificates or None)
    with httpx2.Client(verify=trusted, timeout=within_s, follow_redirects=True) as client:
        for url in indexes.urls:
            for filename, yanked in _files(client, f"{url}/{name}/"):
                version = _version(name, filename)
                if version is not None:
                    reasons.setdefault(version, []).append(yanked)
    if not reasons:
        raise SourceError(
            f"no package index has {name}: {', '.join(map(_shown, indexes.urls)) or 'none is configured'}",
            code="source-missing",
            hint="look at pip's own index: pip config list",
        )
    return tuple(Published(version, _withdrawn(reasons[version])) for version in sorted(reasons))


def _withdrawn(reasons: list[str | None]) -> str | None:
    given = [reason for reason in reasons if reason is not None]
    return next(filter(None, given), "") if len(given) == len(reasons) else None


def _version(name: str, filename: str) -> Version | None:
    try:
        if filename.endswith(".whl"):
            found, version, _, _ = parse_wheel_filename(filename)
        else:
            found, version = parse_sdist_filename(filename)
    except (InvalidWheelFilename, InvalidSdistFilename):
        return None  # indexes keep all sorts of old files, which pip ignores too
    return version if found == name else None


def _files(client: httpx2.Client, url: str) -> Iterator[tuple[str, str | None]]:
    """Names of a project's files, with why each was yanked, or None."""
    if url.startswith("file:"):
        page = Path(url2pathname(urlsplit(url).path)) / "index.html"
        if page.is_file():
            yield from _of_html(page.read_text("utf-8", errors="replace"))
        return
    try:
        answer = client.get(url, headers={"Accept": _ACCEPT})
        if answer.status_code == 404:
            return
    except httpx2.HTTPError as error:
        raise SourceUnavailable(
            f"the package index did not answer for {_shown(url)}: {error}", hint=_WHICH_INDEX
        ) from error
    if answer.status_code != 200:
        raise SourceUnavailable(f"the package index answered {answer.status_code} for {_shown(url)}", hint=_WHICH_INDEX)
    kind = answer.headers.get("content-type", "").partition(";")[0].strip()
    if kind == _JSON or kind == "application/json":
        yield from _of_json(url, answer.text)
    else:
        yield from _of_html(answer.text)


def _of_json(url: str, text: str) -> Iterator[tuple[str, str | None]]:
    try:
        for file in json.loads(text)["files"]:
            yanked = file.get("yanked", False)
            yield str(file["filename"]), yanked if isinstance(yanked, str) else "" if yanked else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceUnavailable(
            f"{_shown(url)} is not a simple index of PEP 691: {error!r}", hint=_WHICH_INDEX
        ) from error


def _of_html(text: str) -> Iterator[tuple[str, str | None]]:
    page = _Page()
    page.feed(text)
    yield from page.files


class _Page(HTMLParser):
    """The anchors of a page of PEP 503: their text is the file's name."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[tuple[str, str | None]] = []
        self._yanked: str | None = None
        self._text: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            attributes = dict(attrs)
            self._yanked = (attributes["data-yanked"] or "") if "data-yanked" in attributes else None
            self._text = []

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._text is not None:
            self.files.append(("".join(self._text).strip(), self._yanked))
            self._text = None


def _shown(url: str) -> str:
    """The URL without the password that it may hold."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", *arguments]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise SettingsError(f"pip did not print its configuration within {_PIP_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        raise SettingsError(
            f"pip did not print its configuration: {done.stderr.strip()}", hint=f"{sys.executable} -m ensurepip"
        )
    return done.stdout


def _pip_options() -> Mapping[str, str]:
    """Options as `pip download` would have them: of its own section before [global], the environment before both."""
    sections: dict[str, dict[str, str]] = {"global": {}, "download": {}, ":env:": {}}
    for line in _pip("config", "list").splitlines():
        key, equals, value = line.partition("=")
        section, dot, option = key.partition(".")
        if equals and dot and section in sections:
            sections[section][option] = str(ast.literal_eval(value))
    return {**sections["global"], **sections["download"], **sections[":env:"]}


def _default_index() -> str:
    """The index that pip uses without configuration, which only its help contains."""
    found = re.search(r"\(default\s+(\S+)\)", _pip("download", "--help").partition("--index-url")[2])
    if found is None:
        raise SettingsError("the help of pip does not contain its default index", hint="set PIP_INDEX_URL")
    return found[1]
