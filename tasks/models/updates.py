"""Which new versions of TensorRT-LLM a model is rebuilt for without being asked."""

from __future__ import annotations

from typing import Literal, Self

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version
from pydantic import Field, field_validator, model_validator

from infra.frozen import Spec


class Updates(Spec):
    """The policy of one model."""

    policy: Literal["pinned", "stable", "pre", "range"] = Field(
        default="pinned",
        description="pinned: none; stable: every release; pre: pre-releases too; range: what `range` says.",
    )
    range: str | None = Field(
        default=None, description="Versions as pip writes them, >=1.0,<1.3; narrows stable and pre."
    )
    canary: bool = Field(default=False, description="Among those that are rebuilt before the others.")

    @field_validator("range")
    @classmethod
    def _is_a_range(cls, text: str | None) -> str | None:
        try:
            return None if text is None else str(SpecifierSet(text))
        except InvalidSpecifier as error:
            raise ValueError(f"{text!r} is not a range of versions, such as >=1.0,<1.3") from error

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.policy == "range" and self.range is None:
            raise ValueError("policy range needs a range")
        if self.policy == "pinned" and (self.range is not None or self.canary):
            raise ValueError("policy pinned takes no new version, so range and canary mean nothing with it")
        return self

    def refuses(self, version: Version) -> str | None:
        """Why the model does not take a version. Returns None if it does."""
        if self.policy == "pinned":
            return "the policy is pinned"
        if self.policy == "stable" and version.is_prerelease:
            return "a pre-release, and the policy is stable"
        if self.range is not None:
            within = SpecifierSet(self.range)
            # As with pip, a range admits pre-releases only if it names one.
            if not within.contains(version, prereleases=True if self.policy == "pre" else bool(within.prereleases)):
                return f"outside of the range {self.range}"
        return None
