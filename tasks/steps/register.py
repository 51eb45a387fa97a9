"""Register what is public with an MLflow server: one version a release, and an alias that names the public one.

Nothing is noted in the store. What the registry has is compared with what is public, so whoever looks next makes up for
what was missed: the next promotion, or `reconcile`. Two that look at once may register a release twice, and the alias
names one of the two. Source: MLflow 3.17, `protos/model_registry.proto`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, Field, JsonValue

from infra.errors import SettingsError, StepFailed, StoreContended
from tasks.models.registry import RELEASE_TAG
from tasks.models.spec import Model
from tasks.sources.mlflow import credentials
from tasks.sources.rest import HttpRefused, get_json, post_json, read_as
from tasks.store.artifact import ArtifactRef
from tasks.store.inventory import recorded_artifact
from tasks.targets.references import ReleaseRef
from tasks.targets.release import Intent
from tasks.targets.target import Target

_MOVES = 5
"""How often the public name may move while it is registered."""
_ABSENT = (400, 404)
"""How MLflow answers for an alias that nobody has, and for a name that there is not."""
_THERE_IS_ONE = 400
"""How it answers to who creates a registered model again."""


class _Tag(BaseModel):
    key: str
    value: str = ""


class _Version(BaseModel):
    version: str = Field(pattern=r"^[1-9][0-9]*$")
    tags: tuple[_Tag, ...] = ()

    @property
    def release(self) -> str:
        """The release that it was registered for; empty if somebody else registered it."""
        return next((tag.value for tag in self.tags if tag.key == RELEASE_TAG), "")


class _Answer(BaseModel):
    model_version: _Version


class _Found(BaseModel):
    model_versions: tuple[_Version, ...] = ()


_Form = TypeVar("_Form", bound=BaseModel)


@dataclass(frozen=True)
class Registered:
    """A version of the registered model `name` that has the alias since now."""

    release: str
    name: str
    alias: str
    version: str

    def __str__(self) -> str:
        return f"{self.release} is version {self.version} of '{self.name}' in MLflow, with the alias '{self.alias}'"


def register_public(target: Target, model: Model, server: str) -> Registered | None:
    """Have the alias of the model's file name the release that is public on `target`.

    Returns None if there was nothing to do: the file asks for no registry, nothing is public, or the alias names it.
    `server` is the address of the tracking server. Raises SettingsError if there is none, SourceUnavailable if it does
    not answer, StepFailed `registry-refused`, SourceError for what is no such server, and StoreError.
    """
    asked = model.mlflow
    if asked is None or target.current(model.name)[0].public is None:
        return None
    if not server:
        raise SettingsError(
            f"{model.name} is to be registered with MLflow, and no server is known",
            hint="ENGINEHOUSE_MLFLOW=https://HOST names the tracking server",
        )
    registry = _Registry(server.rstrip("/"), asked.name or model.name)
    alias = asked.alias_on(target.name, len(model.targets))
    done: Registered | None = None
    for _ in range(_MOVES):
        public = target.live(model.name)
        release = "" if public is None else str(ReleaseRef(target.name, model.name, public.release))
        if public is None or registry.release_of(alias) == release:
            return done
        version = registry.version_of(release) or registry.create(release, _source(target, public), _tags(public))
        registry.give(alias, version)
        # It is looked at again: the public name may have moved meanwhile, and the other one was quicker here.
        done = Registered(release, registry.name, alias, version)
    raise StoreContended(f"the public name of {model.name} moves faster than MLflow can be told")


@dataclass(frozen=True)
class _Registry:
    """One registered model of a tracking server."""

    address: str
    name: str

    def release_of(self, alias: str) -> str:
        """The release of the version that has the alias; empty if none has it, or that of somebody else."""
        with self._refusals(*_ABSENT):
            return self._ask(_Answer, "registered-models/alias", name=self.name, alias=alias).model_version.release
        return ""

    def version_of(self, release: str) -> str:
        """The version that was registered for the release; empty if there is none."""
        asked = f"name='{self.name}' and tags.`{RELEASE_TAG}`='{release}'"
        with self._refusals():
            answer = self._ask(_Found, "model-versions/search", filter=asked, max_results=1)
        return next((each.version for each in answer.model_versions if each.release == release), "")

    def create(self, release: str, source: str, tags: Mapping[str, str]) -> str:
        """Register a version, and the model if it is not there yet. Returns the version."""
        with self._refusals(_THERE_IS_ONE):
            self._post("registered-models/create", name=self.name)
        every: list[JsonValue] = [{"key": key, "value": value} for key, value in {RELEASE_TAG: release, **tags}.items()]
        with self._refusals():
            answer = self._post("model-versions/create", name=self.name, source=source, tags=every)
        return read_as(_Answer, answer, self.address, "MLflow").model_version.version

    def give(self, alias: str, version: str) -> None:
        """Give the alias to a version: it leaves the one that had it."""
        with self._refusals():
            self._post("registered-models/alias", name=self.name, alias=alias, version=version)

    def _ask(self, form: type[_Form], path: str, **query: str | int) -> _Form:
        address = f"{self.address}/api/2.0/mlflow/{path}"
        return read_as(form, get_json(address, credentials(), **query), address, "MLflow")

    def _post(self, path: str, **document: JsonValue) -> Mapping[str, object]:
        return post_json(f"{self.address}/api/2.0/mlflow/{path}", credentials(), document)

    @contextmanager
    def _refusals(self, *expected: int) -> Generator[None]:
        """Ends the block at a status that is `expected`. Raises StepFailed for any other."""
        try:
            yield
        except HttpRefused as error:
            if error.status not in expected:
                raise StepFailed(
                    f"the MLflow server does not let '{self.name}' be registered ({error.status})",
                    hint="set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
                    "to those of somebody who may",
                    code="registry-refused",
                ) from None


def _source(target: Target, public: Intent) -> str:
    """Where the engine lies in the store: with its credentials, MLflow's client downloads it from there."""
    bucket, artifact = target.bucket, recorded_artifact(target.bucket, public.artifact)
    engine = None if artifact is None else artifact.manifest.inputs.get("engine")
    found = None if engine is None else recorded_artifact(bucket, ArtifactRef.parse(engine))
    folder = public.artifact.folder if found is None else f"{found.ref.folder}{found.manifest.attempt}"
    return f"s3://{bucket.name}/{bucket.prefix}{folder}".rstrip("/")


def _tags(public: Intent) -> Mapping[str, str]:
    runtime = public.recipe.get("runtime")
    version = runtime.get("tensorrt_llm") if isinstance(runtime, dict) else None
    said = {
        "repository": public.repository,
        "digest": public.digest,
        "kind": public.recipe.get("kind"),
        "quantization": public.recipe.get("quantization"),
        "tensorrt_llm": version,
        "weights": public.source,
        "flow_run": public.flow_run,
    }
    return {f"enginehouse.{name}": value for name, value in said.items() if isinstance(value, str) and value}
