"""Under which name and alias releases are registered with an MLflow server, if the model's file asks for that."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, field_validator

from infra.frozen import Spec

RELEASE_TAG = "enginehouse.release"
"""The tag of each version that Enginehouse registers: `TARGET/MODEL@N`."""

RegisteredName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$", max_length=200)]
RegistryAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=100)]


class RegistrySpec(Spec):
    """Releases become versions of a registered model, whose alias names the public one."""

    name: RegisteredName | None = Field(default=None, description="Of the registered model. None: the model's name.")
    alias: RegistryAlias = Field(
        default="live",
        description="Names the version of the public release. With several targets it is ALIAS-TARGET on each.",
    )

    @field_validator("alias")
    @classmethod
    def _is_free_to_give(cls, alias: str) -> str:
        if alias.lower() == "latest" or (alias[0] in "vV" and alias[1:].isdecimal()):
            raise ValueError(f"MLflow keeps {alias!r} for itself: aliases are neither latest nor v1")
        return alias

    def alias_on(self, target: str, targets: int) -> str:
        """The alias for the release that is public on one of so many targets."""
        return self.alias if targets <= 1 else f"{self.alias}-{target}".replace(".", "-")
