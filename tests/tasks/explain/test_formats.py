"""The written formats: every field described, records of version 1 readable for ever, newer ones refused."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import pytest

from infra.errors import FormatNewer
from infra.settings import CHECKOUT
from tasks.explain.formats import FORMATS, schema
from tasks.explain.why import why
from tasks.garbage.collect import survey
from tasks.store.artifact import ArtifactRef, Manifest
from tasks.store.identity import Identity
from tasks.store.lease import Watch, held

if TYPE_CHECKING:
    from tests.fleet import Fleet

WRITTEN = (CHECKOUT / "docs/reference/records.md").read_text()

# As the first version wrote them. They stay as they are, whatever becomes of the code.
VERSION_1 = {
    "manifest": """{
 "schema_version": 1, "kind": "engine", "model": "tiny",
 "identity": {"schema": 1, "step": "build", "version": 1, "inputs": {"checkpoint": "sha256:00"}, "fields": {"x": 1}},
 "inputs": {"checkpoint": "checkpoint/tiny/0000000000000000000000000000000000000000000000000000000000000000"},
 "attempt": "0d9c",
 "files": [{"path": "deep/model.gguf", "size": 9, "etag": "e-2", "checksum": "CRC64NVME:FULL_OBJECT:AAAA",
   "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}],
 "producer": {"task": "build", "code": "enginehouse 0.1.0", "host": "h", "runtime": {"gguf": "0.19.0"},
   "flow_run": "f", "seconds": 1.5, "peak_memory_bytes": 7, "peak_gpu_bytes": 0},
 "created": "2026-11-20T10:00:00.123456Z", "state": "present"}""",
    "identity": '{"schema": 1, "step": "fetch", "version": 1, "inputs": {}, "fields": {"source": {"scheme": "file"}}}',
    "reference": """{"kind":"llamacpp","schema_version":1,"tokens":[
 {"cut":31,"passage":"p","schema_version":1,"text":" a","tokens":1}]}""",
    "intent": """{"created":"2026-11-20T10:00:00Z","digest":"d","flow_run":"f","model":"tiny",
 "recipe":{"quantization":"q8_0"},"release":3,"repository":"repository/tiny/00","schema_version":1,"source":"s"}""",
    "gate": """{"asked":{"gate":"agreement"},"candidate":3,"created":"2026-11-29T23:00:00Z","evidence":{"comparisons":[{
 "against":"live","candidate":0.98,"detectable":0.02,"difference":-0.01,"lower":-0.02,"margin":0.01,"measure":"m","method":"e",
 "needed":900,"other":0.99,"p_fine":0.5,"p_worse":0.5,"samples":300,"schema_version":1,"unit":"","upper":0.001}],
 "differing":[{"candidate":"a","note":"","other":"b","question":"q","schema_version":1}],"failures":["f"],
 "figures":[{"candidate":1.0,"live":2.0,"name":"n","schema_version":1,"unit":"s"}],"gaps":["g"],"notes":["n"],
 "prompts":[],"schema_version":1},"flow_run":"f","gate":"agreement","kind":"agreement","live":2,"schema_version":1,
 "seconds":1.5}""",
    "result": """{"created":"2026-11-20T10:00:00Z","prompts":[{"answer":"a","failures":["f"],"node":"n","passed":false,
 "prompt":"p","schema_version":1,"seconds":0.5}],"reason":"r","release":3,"schema_version":1,"state":"refused"}""",
    "approval-request": """{"created":"2026-11-30T03:00:00Z","flow_run":"f","live":2,"parameters":{"model":"tiny"},
 "release":3,"schema_version":1,"timeout_s":86400.0}""",
    "approval": """{"by":"a@b","created":"2026-11-30T03:00:00Z","flow_run":"f","note":"n","release":3,
 "schema_version":1,"state":"approved"}""",
    "current": '{"alone":false,"candidates":[4],"previous":2,"public":3,"schema_version":1}',
    "move": """{"by":"root@host","created":"2026-05-04T03:02:01Z","flow_run":"run","instead_of":2,"kind":"promoted",
 "number":1,"reason":"","release":3,"schema_version":1}""",
    "retirement": """{"by":"root@host","created":"2026-11-30T12:00:00Z","number":1,"reason":"r","release":3,
 "schema_version":1}""",
    "traffic": """{"canary":{"release":4,"schema_version":1,"share":0.1,"sticky":true},"schema_version":1,
 "shadow":{"release":5,"schema_version":1,"share":0.5}}""",
    "shift": """{"created":"2026-11-30T03:00:00Z","reason":"r","release":4,"schema_version":1,"share":0.1,
 "state":"refused","strategy":"canary"}""",
    "watching": """{"asked":{"for":1800},
 "before":{"ended":{"stop":3},"first":{"0.15":3},"gap":{"0.02":3},"schema_version":1},
 "flow_run":"f","nodes":{"n":{"epoch":"e","models":{"tiny":{"4":{"ended":{"stop":1},"first":{},"gap":{},"schema_version":1}}},
 "schema_version":1}},"over":false,"previous":3,"release":4,"schema_version":1}""",
    "watched": """{"asked":{"for":1800},"comparisons":[],"created":"2026-11-30T04:00:00Z","flow_run":"f",
 "observed":{"ended":{"stop":9},"first":{},"gap":{},"schema_version":1},"previous":3,"probes":2,"reason":"r","release":4,"schema_version":1,"seconds":1800.5,
 "state":"healthy"}""",
    "waves": """{"all_back":true,"flow_run":"f","moved":[{"previous":3,"release":4,"schema_version":1,"target":"a"}],
 "parameters":{"model":"tiny"},"passed":1,"reason":"","repository":"repository/00","schema_version":1,"state":"going",
 "waves":[["a"],["b","c"]]}""",
    "wave": """{"created":"2026-11-30T05:00:00Z","flow_run":"f","of":2,"reason":"","release":4,"schema_version":1,
 "state":"passed","targets":["a"],"wave":1}""",
    "aliases": '{"holders":{"ensemble":{"claim":"9f","model":"tiny","schema_version":1}},"schema_version":1}',
    "node": """{"error":"","grpc":"127.0.0.1:2","http":"127.0.0.1:1","memory_available_bytes":1,"memory_total_bytes":2,
 "models":{"tiny":{"error":"","public":3,"releases":{"3":{"error":"","schema_version":1,"starts":1,"state":"ready"}},
 "schema_version":1}},"node":"n","schema_version":1,"target":"t","triton_pid":5,"written":"2026-11-20T10:00:00Z"}""",
    "lease": '{"schema": 1, "holder": "f", "nonce": "00"}',
    "pin": '{"created":"2026-11-20T10:00:00Z","reason":"","reference":"engine/tiny/00","schema_version":1}',
    "use": '{"flow_run":"f","references":["engine/tiny/00"],"schema_version":1}',
    "toolchain": """{"cuda":"12.6","digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000",
 "modelopt":"0.21.0","python":"3.12.3","reported":"2026-11-25T02:00:00Z","schema_version":1,"tensorrt":"10.7.0","tensorrt_llm":"0.16.0","torch":"2.6.0",
 "transformers":"4.45.1"}""",
    "watch": """{"attempts":{"tiny":{"count":1,"flow_run":"f","over":true,"reason":"r","subject":"00",
 "version":"1.2.1"}},
 "followed":{"tiny":{"flow_run":"f","since":"2026-11-25T02:00:00Z","version":"1.2.0"}},"schema_version":1,"shown":""}""",
    "event": """{"code":"event-source","flow_run":"","id":"i","model":"tiny","reason":"r",
 "received":"2026-11-28T06:00:00Z","revision":"","said":{"model":"tiny","source":"s3://b/x"},"schema_version":1,"state":"refused"}""",
    "sequence": """{"event":"i","last":7,"schema_version":1}""",
    "finetuned": """{"accepted":"2026-11-28T06:00:00Z","asked":"hf://o/r@main","event":"i","file_source":"hf://o/r@main",
 "model":"tiny","recipe":{"quantization":"q4_0"},"revision":"00","schema_version":1,"source":"hf://o/r@aa"}""",
    "weights": """{"followed":null,"proven":{"accepted":"2026-11-28T06:00:00Z","asked":"s3://b/x","event":"i",
 "file_source":"hf://o/r@main","model":"tiny","recipe":{},"revision":"00","schema_version":1,"source":"s3://b/x"},
 "schema_version":1}""",
    "renamed": """{"schema_version":1,"was":["org/old"]}""",
    "fleet": """{"records":{"targets/t/tiny/current.json":{"etag":"e","record":{"public":3}}},"schema_version":1}""",
    "catalogue": """{"files":{"tiny.yaml":"name: tiny"},"schema_version":1}""",
    "published": f"""{{"by":"ana@desk","digest":"{"a" * 64}","published":"2026-11-30T12:00:00Z","schema_version":1}}""",
}


def described(record: str) -> list[str]:
    """The fields of a record's table in the written specification."""
    section = WRITTEN.split(f"\n## {record}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def fields(record: str) -> list[str]:
    """The fields of a record as its schema has them, those of inner objects too."""
    document = cast("dict[str, Any]", schema(record))

    def resolved(part: dict[str, Any]) -> dict[str, Any]:
        return document["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part

    def walk(part: dict[str, Any], name: str) -> Iterator[str]:
        part = resolved(part)
        items = resolved(part.get("items", {}))
        values = part.get("additionalProperties")
        values = resolved(cast(Any, values)) if isinstance(values, dict) else {}
        for inner, suffix in ((part, ""), (items, "[]"), (values, "{}")):
            if "properties" in inner:
                for field, value in inner["properties"].items():
                    yield from walk(value, f"{name}{suffix}.{field}".removeprefix("."))
                return
        yield name

    return list(walk(document, ""))


@pytest.mark.parametrize("record", FORMATS)
def test_every_field_is_described(record: str) -> None:
    assert described(record) == fields(record)


def test_every_record_is_described() -> None:
    assert re.findall(r"^## (.+)$", WRITTEN, re.MULTILINE) == list(FORMATS) == list(VERSION_1)


@pytest.mark.parametrize("record", FORMATS)
def test_version_1_is_read(record: str) -> None:
    read = FORMATS[record].model_validate_json(VERSION_1[record])
    written = json.loads(read.model_dump_json(by_alias=True))
    assert kept(json.loads(VERSION_1[record]), written)


def kept(old: Any, new: Any) -> bool:
    """Whether everything of `old` is in `new`, which may have more fields."""
    if isinstance(old, dict) and isinstance(new, dict):
        fields = cast(dict[str, Any], old)
        return all(field in new and kept(value, new[field]) for field, value in fields.items())
    if isinstance(old, list) and isinstance(new, list):
        pairs = zip(cast(list[Any], old), cast(list[Any], new), strict=False)
        return len(cast(list[Any], old)) == len(cast(list[Any], new)) and all(kept(*pair) for pair in pairs)
    return old == new


def test_an_identity_stays_what_it_is() -> None:
    digest = "95c4538271f773887a9fea3524e53dc634df75d34548d78f1dd67420ce80e6ed"
    assert Identity(json.loads(VERSION_1["identity"])).digest == digest


def test_fields_of_later_code_are_ignored(fleet: Fleet) -> None:
    made = fleet.rebuild()
    key = made.engine.folder + "manifest.json"
    record = fleet.store.bucket.get(key)
    assert record is not None
    manifest = json.loads(record.body)
    manifest["colour"] = manifest["files"][0]["colour"] = manifest["producer"]["colour"] = "blue"
    fleet.store.bucket.put(key, json.dumps(manifest).encode())
    assert fleet.store.find(made.engine) is not None
    # Not even garbage collection drops them.
    from tasks.garbage.collect import collect

    collect(fleet.store.bucket, survey(fleet.store.bucket, 0), "test", 5)
    after = fleet.store.bucket.get(key)
    assert after is not None and json.loads(after.body) == manifest | {"state": "collected"}


def test_newer_versions_are_refused_and_never_replaced(fleet: Fleet) -> None:
    made = fleet.rebuild()
    fleet.release(made)
    bucket = fleet.store.bucket
    newer = b'{"schema_version": 99, "everything": "else"}'
    for key, read in {
        made.engine.folder + "manifest.json": lambda: fleet.store.find(made.engine),
        "targets/test/tiny/1/intent.json": lambda: fleet.target.intent("tiny", 1),
        "targets/test/tiny/1/result.json": lambda: fleet.target.result("tiny", 1),
        "targets/test/tiny/current.json": lambda: fleet.target.current("tiny"),
        "targets/test/nodes/one.json": fleet.target.nodes,
        f"uses/tiny/{uuid.uuid4().hex}.json": lambda: survey(bucket, 0),
    }.items():
        before = bucket.get(key)
        bucket.put(key, newer)
        with pytest.raises(FormatNewer) as caught:
            read()
        assert caught.value.code == "format-newer" and "99" in caught.value.message
        assert caught.value.hint and not caught.value.retryable
        if before is not None:
            bucket.put(key, before.body)
        else:
            bucket.delete(key)

    # An older Enginehouse must not take it for damage and make the artifact again.
    bucket.put(made.engine.folder + "manifest.json", newer)
    identity = Identity({"schema": 1, "step": "build"})
    ref = ArtifactRef("engine", made.engine.identity)
    with pytest.raises(FormatNewer):
        fleet.store.publish(ref, identity, fleet.folder, inputs={}, producer=_producer())
    record = bucket.get(made.engine.folder + "manifest.json")
    assert record is not None and record.body == newer


def _producer() -> Any:
    return Manifest.model_validate_json(VERSION_1["manifest"]).producer


def test_newer_leases_and_identities_are_refused(fleet: Fleet) -> None:
    bucket = fleet.store.bucket
    bucket.put("leases/x.json", b'{"schema": 2, "by": "somebody"}')
    with pytest.raises(FormatNewer):
        Watch(bucket, "x", 1).holder()
    with held(bucket, "y", "test", 60):
        record = bucket.get("leases/y.json")
        assert record is not None and FORMATS["lease"].model_validate_json(record.body)
    first, second = fleet.rebuild(), fleet.rebuild(slots=9)
    key = second.repository.folder + "manifest.json"
    record = bucket.get(key)
    assert record is not None
    manifest = json.loads(record.body)
    manifest["identity"]["schema"] = 2
    bucket.put(key, json.dumps(manifest).encode())
    with pytest.raises(FormatNewer) as caught:
        why(bucket, second.repository, first.repository)
    assert caught.value.code == "format-newer" and "identity document" in caught.value.message
