"""Every command as a person at a terminal of 80 columns sees it and as a program reads it: a good result and a refusal.

The snapshots are in `tests/snapshots/commands` (`tests/typed.py`). A further command has an entry in `READ`, or a test
of its own here, and one in `REFUSED`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import tempfile
import uuid
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import constants

from deployments.cli import flow_commands
from deployments.cli import main as main_module
from deployments.cli.completion import subcommands
from deployments.cli.main import command_line
from deployments.prefect_server import announce, register
from deployments.prefect_server.desired import Desired
from deployments.prefect_server.difference import ResourceChange
from deployments.prefect_server.server import Server
from flows.report import StepReport, current_report
from flows.watch_releases import Watched
from infra.errors import GateRefused
from infra.gpu import Gpu, GpuReport
from infra.s3 import bucket as bucket_module
from infra.s3.bucket import Bucket
from infra.settings import CHECKOUT
from infra.toolchains import added, choose
from infra.toolchains.added import Environment
from infra.toolchains.toolchain import ToolchainReport
from infra.toolchains.versions import Versions
from infra.triton.client import Completion, TritonClient
from tasks.load.measure import Measurement
from tasks.models.catalogue import load_model
from tasks.models.overrides import override
from tasks.store.artifact_store import ArtifactStore
from tasks.targets.approval import ApprovalRequest
from tasks.targets.approvals import Approvals
from tasks.targets.target import Target
from tasks.watch.verdict import Row
from tasks.watch.waves import Start
from tests.conftest import BUCKET
from tests.deployments.cli.test_log_command import Prefect
from tests.deployments.cli.test_log_command import prefect as prefect  # a fixture
from tests.fleet import Fleet
from tests.standin import engine as standin
from tests.tasks.conftest import signing_keys as signing_keys  # a fixture
from tests.tasks.load.test_figures import outcome
from tests.tasks.sources.hub_server import Hub
from tests.tasks.targets.test_aliases import answering
from tests.tasks.weights.configs import CACHE_BYTES, text
from tests.typed import FOLDER, plain, require_snapshot, too_wide, typed

if TYPE_CHECKING:
    from datetime import datetime

NOBODY = "http://127.0.0.1:9/api"
"""Port 9 of loopback: nothing answers there."""
RUN = "1f0c2f6e-33aa-4d2b-9d0f-000000000001"
AGE_S = 3.0
"""How long ago everything in the store was written, as the server says."""

READ = {
    "init": "init {folder}/fleet",
    "doctor": "doctor catalogue triton-control",
    "status": "status",
    "status-stack": "status --stack",
    "ui": "ui",
    "env": "env",
    "plan": "plan smollm2-135m --offline",
    "plan-fleet": "plan --offline",
    "releases": "releases tiny",
    "lineage": "lineage tiny",
    "why": "why tiny",
    "gc": "gc --dry-run --grace 0",
    "schema": "schema lease",
    "report": "report tiny",
    "history": "history tiny",
    "diff": "diff smollm2-135m",
    "toolchain-list": "toolchain list",
}
"""What changes nothing, so that it can be typed again."""

REFUSED = {
    "init": ("init {folder}/taken", "file-exists"),
    "up": ("up now", "usage"),
    "down": ("down now", "usage"),
    "doctor": ("doctor trition", "check-missing"),
    "status": ("status --state sleeping", "usage"),
    "ui": ("ui", "stack-down"),
    "env": ("env", "stack-down"),
    "plan": ("plan smollm2-135 --offline", "model-missing"),
    "assemble": (
        "assemble smollm2-135m --engine {folder} --tokenizer {folder} --output {folder}/made --runtime 1.2.1",
        "usage",
    ),
    "rebuild": ("rebuild smollm2-135m --recipe quantization", "usage"),
    "ask": ("ask tiny hello", "usage"),
    "releases": ("releases tinny", "release-missing"),
    "rollback": ("rollback tiny --from 1", "release-moved"),
    "approve": ("approve tiny", "approval-missing"),
    "reject": ("reject tinny", "approval-missing"),
    "probe": ("probe", "usage"),
    "lineage": ("lineage tinny", "reference-unknown"),
    "why": ("why tiny@9", "release-missing"),
    "verify": ("verify tiny --nodes .", "usage"),
    "sign": ("sign tiny", "settings"),
    "pin": ("pin nothing", "reference-unknown"),
    "unpin": ("unpin tiny@1", "reference-unknown"),
    "gc": ("gc --grace week", "usage"),
    "schema": ("schema leese", "usage"),
    "report": ("report tiny --html - --json", "report-form"),
    "history": ("history tiny --limit 0", "usage"),
    "logs": ("logs tiny --step biuld", "usage"),
    "export": ("export", "usage"),
    "new": ("new org/repo", "source-invalid"),
    "diff": ("diff nothing", "model-missing"),
    "rename": ("rename tiny tiny", "usage"),
    "retire": ("retire tiny", "not-confirmed"),
    "deploy": ("deploy", "prefect-missing"),
    "watch": ("watch", "prefect-missing"),
    "finetuned": ("finetuned tuned --revision main", "prefect-missing"),
    "webhooks": ("webhooks --port https", "usage"),
    "node": ("node", "node-ports"),
    "gateway": ("gateway", "gateway-keys"),
    "gateway-key": ("gateway-key 'two words'", "gateway-keys"),
    "load": ("load tiny", "load-options"),
    "completion": ("completion fish", "usage"),
    "toolchain-add": ("toolchain add 1.2.x", "usage"),
    "toolchain-list": ("toolchain list all", "usage"),
}
"""What is typed, and the code of the error that it ends with."""

WITHOUT = {
    "up": "starts a whole stack, and prints a line for each process: tests/deployments/stack/test_stack.py",
    "down": "the same",
    "node": "runs until it is ended, and prints the lines of its log",
    "gateway": "the same",
    "webhooks": "the same",
    "completion": "prints a script that is made from all the others: test_completion.py has shells read it",
}
"""Commands whose good result has no snapshot, and why."""


def given(value: object) -> Callable[..., object]:
    """A function that returns `value`, whatever it is called with."""

    def call(*_: object, **__: object) -> object:
        return value

    return call


@dataclass(frozen=True)
class World:
    """A folder with a catalogue, and a store in which `tiny` has two releases, the second one public."""

    folder: Path
    fleet: Fleet

    def type(self, line: str, **options: Any) -> Any:
        return typed(*shlex.split(line.format(folder=self.folder)), **options)

    @property
    def known(self) -> dict[str, str]:
        """What this run alone has, for a snapshot."""
        return {"/tmp/folder": str(self.folder), "prefix": self.fleet.store.bucket.prefix.strip("/")}

    def snapshot(self, name: str, shown: Any, document: object = None) -> None:
        require_snapshot(name, shown, document, **self.known)
        assert too_wide(shown.err) + ([] if "--json" in shown.words else too_wide(shown.out)) == []


TUNED = """\
name: tuned
source: {uri: hf://org/tiny@main}
recipe: {kind: transformers}
labels: {team: search}
prompts:
  - {name: count, text: Count., max_tokens: 4, expect: {min_tokens: 1}}
"""


@pytest.fixture(scope="module")
def world(seaweedfs: tuple[str, str, str]) -> Iterator[World]:
    # Short, and as long each time: where lines break must not hang on the name of a folder.
    folder = Path(tempfile.mkdtemp(prefix="eh-", dir="/tmp"))
    models = folder / "models"
    models.mkdir()
    shutil.copy(CHECKOUT / "deployments" / "models" / "smollm2-135m.yaml", models)
    (models / "tuned.yaml").write_text(TUNED)
    (models / "broken.yaml").write_text("name: broken\nsuorce: {}\n")
    (folder / "taken").mkdir()
    (folder / "taken" / "enginehouse.toml").write_text("rebuilds = 2\n")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "ENGINEHOUSE_", "PREFECT_"))]:
            if not name.startswith(("ENGINEHOUSE_TEST_", "ENGINEHOUSE_WRITE_")):
                patch.delenv(name)
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        for name, value in (*zip(names, seaweedfs, strict=True), ("AWS_DEFAULT_REGION", "us-east-1")):
            patch.setenv(name, value)
        store = f"s3://{BUCKET}/{uuid.uuid4().hex}"
        patch.setenv("ENGINEHOUSE_STORE", store)
        patch.setenv("ENGINEHOUSE_TARGET", "test")
        patch.setenv("ENGINEHOUSE_HOME", str(folder / "home"))
        patch.setenv("ENGINEHOUSE_CATALOGUE", str(models))
        patch.setattr(bucket_module, "_server_time", given(_Later()))
        patch.setattr("getpass.getuser", lambda: "ann")
        named = platform.uname()._replace(node="desk")
        patch.setattr("platform.uname", lambda: named)
        patch.setattr(main_module, "command_line", cache(command_line))
        bucket = Bucket.at(store)
        fleet = Fleet(ArtifactStore(bucket), Target(bucket, "test"), folder / "files")
        fleet.release(fleet.rebuild())
        fleet.release(fleet.rebuild(quantization="nvfp4"))
        answering(fleet, tiny=2)
        yield World(folder, fleet)
    shutil.rmtree(folder)


class _Later:
    """The server's clock: always AGE_S after what it is compared with."""

    def __sub__(self, other: datetime) -> Any:
        from datetime import timedelta

        assert other.tzinfo is not None
        return timedelta(seconds=AGE_S)


@pytest.fixture
def stack(world: World) -> Iterator[None]:
    """What commands know of a stack that is up."""
    path = world.folder / "home" / "environment.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"PREFECT_API_URL": NOBODY, "PREFECT_API_AUTH_STRING": "enginehouse:login"}))
    yield
    path.unlink()


def options_of(name: str) -> set[str]:
    """The options of a command, such as `releases` or `toolchain-list`."""
    first, _, second = name.partition("-")
    known = subcommands(command_line())
    parser = known[name] if name in known else subcommands(known[first])[second]
    return set(parser._option_string_actions)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize("name", READ)
def test_what_changes_nothing(world: World, name: str) -> None:
    shown = world.type(READ[name])
    command = name.removesuffix("-fleet").removesuffix("-stack")
    document = world.type(f"{READ[name]} --json", person=False).document if "--json" in options_of(command) else None
    world.snapshot(name, shown, document)


@pytest.mark.parametrize("line", ["status", "doctor catalogue", "releases tinny"])
def test_a_terminal_that_wants_no_colours_gets_the_same_text(world: World, line: str) -> None:
    coloured, without = world.type(line), world.type(line, colour=False)
    assert "\x1b" in coloured.out + coloured.err
    assert (without.out, without.err) == (plain(coloured.out), plain(coloured.err))


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_two_lines_and_for_a_program_one_document(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    line, code = REFUSED[name]
    given = {"probe": {"ENGINEHOUSE_TOOLCHAIN": "venv"}, "gateway": {"ENGINEHOUSE_GATEWAY_KEYS": "/nowhere/keys.yaml"}}
    monkeypatch.setattr("sys.stdin", StringIO())
    if "--json" in options_of(name) and "--json" not in line:
        line += " --json"
    shown = world.type(line, **given.get(name, {}))
    world.snapshot(f"{name}-refused", shown)
    assert f"[{code}]" in shown.err and "hint" in shown.err and "Traceback" not in shown.err
    assert shown.code == 2
    if "--json" in line:
        error = shown.document["error"]
        assert error.keys() == {"code", "message", "hint"} and error["code"] == code and error["hint"]
    else:
        assert shown.out == ""


def test_verify(world: World) -> None:
    shown = world.type("verify tiny", watched=False)  # stderr would count bytes
    world.snapshot("verify", shown, world.type("verify tiny --json", person=False).document)


def test_pin_and_unpin(world: World) -> None:
    world.snapshot("pin", world.type("pin tiny@1 --reason 'for the audit'"), world.type("pin tiny@1 --json").document)
    engine = world.fleet.rebuild().engine
    world.type(f"pin {engine}")
    world.snapshot("unpin", world.type("unpin tiny@1"), world.type(f"unpin {engine} --json").document)


def test_sign(world: World, monkeypatch: pytest.MonkeyPatch, signing_keys: dict[str, str]) -> None:
    monkeypatch.setenv("ENGINEHOUSE_SIGNING_KEY", signing_keys["ours"])
    world.snapshot("sign", world.type("sign tiny@1", watched=False))


def decided(world: World, model: str) -> None:
    """Release 1 of the model waits for a person."""
    fleet = world.fleet
    number = fleet.release(fleet.rebuild(model), public=False)
    fleet.target.move(model, lambda current: current.with_candidate(number))
    Approvals(fleet.target, model, number).ask(ApprovalRequest(release=number, timeout_s=3600))


@pytest.mark.parametrize("name", ["approve", "reject"])
def test_a_decision(world: World, name: str) -> None:
    for model in (f"{name}-a", f"{name}-b"):
        decided(world, model)
    shown = world.type(f"{name} {name}-a --note 'its French is fine'")
    world.snapshot(name, shown, world.type(f"{name} {name}-b --json").document)


def test_rollback(world: World) -> None:
    fleet = world.fleet
    for model in ("back-a", "back-b"):
        fleet.release(fleet.rebuild(model))
        fleet.release(fleet.rebuild(model, quantization="nvfp4"))
    answering(fleet, **{"tiny": 2, "back-a": 1, "back-b": 1})
    shown = world.type("rollback back-a --reason 'it answers nonsense'")
    world.snapshot("rollback", shown, world.type("rollback back-b --json").document)
    assert "was rolled back from: `enginehouse history back-a`" in world.type("releases back-a").out


def test_retire(world: World) -> None:
    fleet = world.fleet
    for model in ("gone-a", "gone-b"):
        fleet.release(fleet.rebuild(model))
    (world.folder / "models" / "gone-a.yaml").write_text("name: gone-a\n")
    shown = world.type("retire gone-a --reason 'nobody asks it' --yes")
    (world.folder / "models" / "gone-a.yaml").unlink()
    world.snapshot("retire", shown, world.type("retire gone-b --yes --json").document)


def test_rename(world: World) -> None:
    file = world.folder / "models" / "old-a.yaml"
    for old in ("old-a", "old-b"):
        file.with_stem(old).write_text(TUNED.replace("tuned", old))
    shown = world.type("rename old-a new-a --yes")
    world.snapshot("rename", shown, world.type("rename old-b new-b --yes --json").document)
    for new in ("new-a", "new-b"):
        file.with_stem(new).unlink()


def test_new(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = CACHE_BYTES["llama-3.1-8b"]
    card = b"---\nlicense: llama3.1\n---\n"
    weights = {"model.safetensors": bytes(2000), "config.json": text(config), "README.md": card}
    template = json.dumps({"chat_template": "{{ messages }}"}).encode()
    with Hub() as hub:
        # The client reads HF_ENDPOINT when it is imported, which another test may have done.
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        hub.push("org/llama", {"tokenizer_config.json": template, **weights})
        shown = world.type("new hf://org/llama --name made-a --gpu 'NVIDIA H200'")
        document = world.type("new hf://org/llama --name made-b --gpu 'NVIDIA H200' --json").document
    world.snapshot("new", shown, document)
    for made in ("made-a", "made-b"):
        (world.folder / "models" / f"{made}.yaml").unlink()


def test_assemble(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEHOUSE_CATALOGUE", str(CHECKOUT / "deployments" / "models"))
    model = override(load_model(CHECKOUT / "deployments/models/llama3-8b-by-hand.yaml"), tensorrt_llm="0.16.0").model
    standin.make(model.recipe, world.folder / "engine")  # pyright: ignore[reportArgumentType]
    (world.folder / "tokenizer").mkdir()
    (world.folder / "tokenizer" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    line = "assemble llama3-8b-by-hand --engine {folder}/engine --tokenizer {folder}/tokenizer --runtime 0.16.0"
    shown = world.type(f"{line} --output {{folder}}/a")
    world.snapshot("assemble", shown, world.type(f"{line} --output {{folder}}/b --json").document)


def test_gateway_key(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_urlsafe", given("k" * 43))
    line = "gateway-key search --model tiny --tokens-per-minute 60000"
    world.snapshot("gateway-key", world.type(line), world.type(f"{line} --json", person=False).document)


def test_probe(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(0, "NVIDIA H200", "sm90", 141 << 30, 139 << 30, "GPU-0")
    gpus = GpuReport("580.65.06", "13.0", (gpu,), "")
    versions = dict.fromkeys(Versions.model_fields, "1.2.1")
    report = ToolchainReport(**versions, container_digest=f"sha256:{'5e' * 32}", free_host_bytes=96 << 30, gpus=gpus)
    monkeypatch.setattr(choose, "toolchain", given(_Found(report)))
    world.snapshot("probe", world.type("probe"), world.type("probe --json", person=False).document)


@dataclass(frozen=True)
class _Found:
    """A toolchain that was looked at."""

    found: ToolchainReport

    def report(self) -> ToolchainReport:
        return self.found


def test_ask(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEHOUSE_TRITON_HTTP", "http://127.0.0.1:9")
    monkeypatch.setattr(TritonClient, "generate", given(Completion("The sea is wide.", (), 0.5)))
    pieces = [Completion(piece, (), 0.1) for piece in ("The sea", " is wide.")]
    monkeypatch.setattr(TritonClient, "generate_stream", given(pieces))
    world.snapshot("ask", world.type("ask tiny 'Say something.'"), world.type("ask tiny hello --json").document)
    shown = world.type("ask tiny 'Say something.' --stream")
    lines = world.type("ask tiny 'Say something.' --stream --json").out.splitlines()
    assert shown.out == "The sea is wide.\n"
    assert [json.loads(line)["text"] for line in lines] == ["The sea", " is wide."]


def test_load(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(self: Measurement, *_: object) -> None:
        for number in range(40):
            self.collected.outcome(outcome(number, 0.1 + number / 1000, 0.5 + number / 500))
            self.collected.late(0.001)

    monkeypatch.setattr(Measurement, "run", run)
    line = "load tiny --address 127.0.0.1:1 --rate 5 --warm-up 0 --goodput time_to_first_token=120"
    world.snapshot("load", world.type(line, watched=False), world.type(f"{line} --json", person=False).document)


def test_logs(world: World, prefect: Prefect) -> None:
    run = prefect.run("rebuild tiny", 0, id=RUN)
    prefect.say(run, "Beginning flow run", 0)
    prefect.say(run, "fetch tiny begins", 1, prefect.task(run, "fetch hf://org/tiny"))
    prefect.say(run, "one: loading", 3, prefect.task(run, "roll out tiny"), 30)
    lines = world.type("logs tiny --json", person=False).out.splitlines()
    world.snapshot("logs", world.type("logs tiny"), [json.loads(line) for line in lines])


def test_export(world: World, monkeypatch: pytest.MonkeyPatch, signing_keys: dict[str, str]) -> None:
    monkeypatch.setenv("ENGINEHOUSE_SIGNING_KEY", signing_keys["ours"])
    line = "export tiny@1 --to {folder}/tiny-1"
    shown = world.type(line, watched=False)  # stderr would count bytes
    document = world.type(f"{line} --json", person=False).document
    world.snapshot("export", shown, document | {"size": 0})  # a signature is now a byte longer, now shorter


def test_toolchain_add(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = dict.fromkeys(Versions.model_fields, "1.2.1")
    report = ToolchainReport(**versions, container_digest="", free_host_bytes=96 << 30, gpus=GpuReport("", "", (), ""))
    made = Environment("1.2.1", world.folder / "home" / "toolchains" / "1.2.1", "index", "ready", report)
    monkeypatch.setattr(added, "add", given(made))
    shown = world.type("toolchain add 1.2.1")
    world.snapshot("toolchain-add", shown, world.type("toolchain add 1.2.1 --json", person=False).document)


class FlowDone:
    """In place of a flow and its server: what the flow would have left."""

    def __init__(self, patch: pytest.MonkeyPatch, outcome: Callable[[], object]) -> None:
        def run_flow(flow: Coroutine[Any, Any, object]) -> object:
            flow.close()
            return outcome()

        patch.setenv("PREFECT_API_URL", NOBODY)
        patch.setattr(flow_commands, "require_prefect", given(None))
        patch.setattr(flow_commands, "_print_logs_from", given(None))
        patch.setattr(flow_commands, "run_flow", run_flow)


STEPS = (
    StepReport("resolve", "Completed", 0.41),
    StepReport("fetch", "Cached", 0.02, f"snapshot/{'1a' * 32}"),
    StepReport("convert", "Cached", 0.02, f"checkpoint/{'2b' * 32}"),
    StepReport("build", "Completed", 4210.3, f"engine/{'3c' * 32}"),
    StepReport("upload", "Completed", 61.0, f"engine/{'3c' * 32}"),
    StepReport("assemble", "Completed", 0.9, f"repository/{'4d' * 32}"),
)


def rebuilt(*more: StepReport) -> None:
    report = current_report("smollm2-135m")
    report.flow_run = RUN
    for step in (*STEPS, *more):
        report.add(step)
    report.add_release("local", 2)
    report.state = "promoted"


def test_rebuild(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    FlowDone(
        monkeypatch, lambda: rebuilt(StepReport("validate", "Completed", 3.0), StepReport("promote", "Completed", 1))
    )
    shown = world.type("rebuild smollm2-135m")
    world.snapshot("rebuild", shown, world.type("rebuild smollm2-135m --json", person=False).document)


def test_a_rebuild_that_a_gate_refuses(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        rebuilt(StepReport("validate", "Refused", 3.0))
        current_report("smollm2-135m").state = "refused"
        reason = "count-in-french was answered with 'One, two, three', which does not contain 'trois'"
        raise GateRefused(f"release 2 is refused: {reason}", hint="the live release was not touched")

    FlowDone(monkeypatch, refused)
    shown = world.type("rebuild smollm2-135m")
    document = world.type("rebuild smollm2-135m --json", person=False).document
    world.snapshot("rebuild-gate", shown, document)
    assert shown.code == 3 and document["error"].keys() == {"code", "message", "hint"}


def test_watch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        Row("llama3-8b-instruct", "1.2.0", "1.2.1", "rebuild", "its policy `stable` takes this version"),
        Row("llama3-70b-instruct", "1.2.0", "1.2.1", "rebuild", "its policy `stable` takes this version"),
        Row("smollm2-135m", "", "", "unaffected", "its kind llamacpp has no TensorRT-LLM"),
    )
    FlowDone(monkeypatch, lambda: Watched(rows, (Start("llama3-8b-instruct", "1.2.1", "key"),)))
    shown = world.type("watch --dry-run")
    world.snapshot("watch", shown, world.type("watch --dry-run --json", person=False).document)


def test_deploy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def deploy(
        wanted: Desired, show: Callable[[ResourceChange], None], *, dry_run: bool = False
    ) -> tuple[ResourceChange, ...]:
        server = Server({}, {}, {}, {}, {}, None)  # it has nothing
        some = ("build-cpu", "rollback/rollback", "lost-runs")
        changes = tuple(change for change in server.changes(wanted) if change.resource.name in some)
        for change in changes:
            show(change)
        return changes

    monkeypatch.setenv("PREFECT_API_URL", NOBODY)
    monkeypatch.setattr(register, "deploy", deploy)
    (world.folder / "models" / "broken.yaml").rename(world.folder / "aside")
    shown = world.type("deploy --dry-run")
    document = world.type("deploy --dry-run --json", person=False).document
    (world.folder / "aside").rename(world.folder / "models" / "broken.yaml")
    world.snapshot(
        "deploy", shown, [{name: change[name] for name in ("kind", "name", "action")} for change in document]
    )


def test_finetuned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def send(*_: object) -> None:
        pass

    monkeypatch.setenv("PREFECT_API_URL", NOBODY)
    monkeypatch.setattr(announce, "send", send)
    line = "finetuned tuned --revision v2"
    world.snapshot("finetuned", world.type(line), world.type(f"{line} --json", person=False).document)


def leaves(parser: argparse.ArgumentParser, start: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for name, sub in subcommands(parser).items():
        below = list(leaves(sub, f"{start}{name}-"))
        yield from below or [(f"{start}{name}", sub)]


def test_every_command_has_a_good_result_and_a_refusal() -> None:
    names = dict(leaves(command_line()))
    there = {path.stem for path in FOLDER.glob("*.txt")}
    assert set(REFUSED) == set(names) and WITHOUT.keys() <= names.keys()
    assert {*names} - {*WITHOUT} - there == set() and {f"{name}-refused" for name in names} - there == set()
    known = {*names, *READ, *(f"{name}-refused" for name in names), "rebuild-gate"}
    assert there - known == set()


def test_help_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name, parser in (("enginehouse", command_line()), *leaves(command_line())):
        assert too_wide(parser.format_help()) == [], name
