"""The senders of webhooks: how each proves its identity, and how its document becomes fine-tuning events.

huggingface   the secret verbatim in `X-Webhook-Secret`. A push to `main` of a model's own repository, which it follows
              under this name or a former one, or of one that its file accepts. It counts while the commit is the head
              of `main`. The new name of a repository that is renamed.
mlflow        `X-MLflow-Signature`. A new model version; its tags `enginehouse.model`, `enginehouse.source` and
              `enginehouse.recipe.FIELD` give what MLflow itself has no field for. The versions are a series. An alias
              that a model's file follows: it counts while the version has it.
generic       `X-Enginehouse-Signature`, of the same scheme. An event as it goes to Prefect.

The signature is `v1,` and the base64 of HMAC-SHA256 over `DELIVERY_ID.TIMESTAMP.BODY`, the first two from headers of
the same prefix. Source: mlflow/webhooks/delivery.py of MLflow 3, which follows standardwebhooks.com. The Hub signs
nothing, so anybody who has seen a delivery of it can replay it: it names a commit and its branch, and has no effect a
second time, nor once the branch has moved on.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from infra.errors import EventRefused
from infra.frozen import problems
from tasks.finetuned.event import Event, read_event, tuned
from tasks.finetuned.renamed import Renames
from tasks.models.registry import RELEASE_TAG
from tasks.models.source_uri import HubUri, ModelsUri, is_repository
from tasks.models.spec import Model
from tasks.sources.accepts import accepted

PATIENCE_SECONDS = 300
"""How far a signed timestamp may be from now, in both directions."""

Models = Mapping[str, Model]


@dataclass(frozen=True)
class Delivery:
    """One request. Names of headers are in lower case, `received` is in seconds since 1970."""

    headers: Mapping[str, str]
    body: bytes
    received: float


@dataclass(frozen=True)
class Sender:
    """`identify` returns the id of a delivery, and raises EventRefused if it was not sent with the secret.

    `events` reads a JSON document. It yields nothing for a document that is not about weights of a known model, and
    keeps the names of repositories that are renamed.
    """

    identify: Callable[[Delivery, bytes], UUID]
    events: Callable[[JsonValue, Models, Renames], Iterator[Event]]


def _by_secret(delivery: Delivery, secret: bytes) -> UUID:
    given = delivery.headers.get("x-webhook-secret")
    if given is None:
        raise EventRefused("the header X-Webhook-Secret is missing", code="signature-missing")
    if not hmac.compare_digest(given.encode("latin-1"), secret):
        raise EventRefused("X-Webhook-Secret is not the secret", code="signature-invalid")
    return uuid4()


def _by_signature(prefix: str) -> Callable[[Delivery, bytes], UUID]:
    names = [f"{prefix}-{part}" for part in ("Delivery-Id", "Timestamp", "Signature")]

    def identify(delivery: Delivery, secret: bytes) -> UUID:
        given = [delivery.headers.get(name.lower(), "") for name in names]
        if missing := [name for name, value in zip(names, given, strict=True) if not value]:
            raise EventRefused(f"headers are missing: {', '.join(missing)}", code="signature-missing")
        id, timestamp, signatures = given
        digest = hmac.digest(secret, f"{id}.{timestamp}.".encode() + delivery.body, "sha256")
        expected = b"v1," + base64.b64encode(digest)
        if not any(hmac.compare_digest(each.encode(), expected) for each in signatures.split()):
            raise EventRefused(f"{names[2]} is not that of this body, id and timestamp", code="signature-invalid")
        if not re.fullmatch("[0-9]{1,12}", timestamp) or abs(delivery.received - int(timestamp)) > PATIENCE_SECONDS:
            raise EventRefused(f"{names[1]} is more than {PATIENCE_SECONDS} s from now", code="timestamp-old")
        return uuid5(NAMESPACE_URL, f"{prefix}:{id}")

    return identify


class _Foreign(BaseModel):
    """A document of a sender: it may have more fields than are read."""

    model_config = ConfigDict(extra="ignore", frozen=True)


_Document = TypeVar("_Document", bound=_Foreign)


class _HubEvent(_Foreign):
    action: str
    scope: str


class _HubRepository(_Foreign):
    type: str
    name: str
    head_sha: str | None = Field(default=None, alias="headSha", pattern="^[0-9a-f]{40}$")


class _HubReference(_Foreign):
    ref: str


class _HubName(_Foreign):
    name: str


class _HubDocument(_Foreign):
    """Source: huggingface.co/docs/hub/webhooks, version 3 of the payload; huggingface_hub/_webhooks_payload.py."""

    event: _HubEvent
    repo: _HubRepository
    moved: _HubName | None = Field(default=None, alias="movedTo")
    updated: tuple[_HubReference, ...] | None = Field(default=None, alias="updatedRefs")


def _of_the_hub(document: JsonValue, models: Models, renames: Renames) -> Iterator[Event]:
    push = _read(_HubDocument, document)
    if push.event.action == "move" and push.moved is not None and is_repository(push.moved.name):
        names = (push.repo.name, *renames.former(push.repo.name))
        if push.repo.type == "model" and any(_repository(model) in names for model in models.values()):
            renames.note(push.repo.name, push.moved.name)
        return
    branches = {"refs/heads/main"} if push.updated is None else {each.ref for each in push.updated}
    pushed = push.event.action in ("create", "update") and push.event.scope in ("repo", "repo.content")
    if not pushed or push.repo.type != "model" or push.repo.head_sha is None or "refs/heads/main" not in branches:
        return
    names = (push.repo.name, *renames.former(push.repo.name))
    for model in models.values():
        # By the name in the model's file, which the hub sends on, and by which everything else knows these weights.
        repository = own if (own := _repository(model)) in names else push.repo.name
        source = f"hf://{repository}@{push.repo.head_sha}"
        if str(tuned(model)) == f"hf://{repository}@main" or accepted(model, source):
            yield Event(model=model.name, source=source, branch="main", sender="huggingface")


def _repository(model: Model) -> str | None:
    """The repository that fine-tuning changes; None if that is none of the hub."""
    own = tuned(model)
    return own.repository if isinstance(own, HubUri) else None


class _MlflowVersion(_Foreign):
    name: str
    version: int | None = Field(default=None, ge=1)
    source: str
    tags: dict[str, str] = Field(default_factory=dict[str, str])


class _MlflowAlias(_Foreign):
    name: str
    alias: str
    version: int = Field(ge=1)


class _MlflowDocument(_Foreign):
    """Source: mlflow/webhooks/delivery.py and types.py."""

    entity: str
    action: str
    data: dict[str, JsonValue]


def _of_mlflow(document: JsonValue, models: Models, _: Renames) -> Iterator[Event]:
    delivered = _read(_MlflowDocument, document)
    match delivered.entity, delivered.action:
        case "model_version", "created":
            yield from _of_a_version(_read(_MlflowVersion, delivered.data), models)
        case "model_version_alias", "created":
            yield from _of_an_alias(_read(_MlflowAlias, delivered.data), models)
        case _:
            return


def _of_an_alias(given: _MlflowAlias, models: Models) -> Iterator[Event]:
    for model in models.values():
        own = tuned(model)
        if isinstance(own, ModelsUri) and (own.name, own.alias) == (given.name, given.alias):
            source = str(replace(own, alias="", version=str(given.version)))
            yield Event(model=model.name, source=source, alias=given.alias, sender="mlflow")


def _of_a_version(version: _MlflowVersion, models: Models) -> Iterator[Event]:
    if RELEASE_TAG in version.tags:
        return  # Enginehouse registered it itself, as a release of what it serves
    tags = _below("enginehouse.", version.tags)
    name = tags.get("model", version.name)
    if "model" not in tags and name not in models:
        return  # a registry has other models too
    # MLflow 3 names a logged model here, or a place that only its server knows. The registry says where that lies.
    by_registry = version.version is not None and version.source.startswith(("models:/", "mlflow-artifacts:/"))
    source = tags.get("source", f"models:/{version.name}/{version.version}" if by_registry else version.source)
    if name in models and _follows_otherwise(models[name], version.name) and not accepted(models[name], source):
        return
    payload: dict[str, JsonValue] = {
        "model": name,
        "sender": "mlflow",
        "source": source,
        "recipe": dict(_below("recipe.", tags)),
        **({} if version.version is None else {"series": f"mlflow:{version.name}", "version": version.version}),
        **({"traceparent": tags["traceparent"]} if "traceparent" in tags else {}),
    }
    yield read_event(payload)


def _follows_otherwise(model: Model, registered: str) -> bool:
    """Whether the model's file names an alias or version of this registered model: a new version is then not for it."""
    own = tuned(model)
    return isinstance(own, ModelsUri) and own.name == registered


def _below(prefix: str, tags: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix(prefix): value for name, value in tags.items() if name.startswith(prefix)}


def _as_it_is(document: JsonValue, models: Models, _: Renames) -> Iterator[Event]:
    if not isinstance(document, dict):
        raise EventRefused("the body is not a JSON object")
    yield read_event({**document, "sender": "generic"})


def _read(form: type[_Document], document: object) -> _Document:
    try:
        return form.model_validate(document)
    except ValidationError as error:
        raise EventRefused(f"not a document of this sender: {problems(error)}") from error


SENDERS: Mapping[str, Sender] = {
    "huggingface": Sender(_by_secret, _of_the_hub),
    "mlflow": Sender(_by_signature("X-MLflow"), _of_mlflow),
    "generic": Sender(_by_signature("X-Enginehouse"), _as_it_is),
}
