"""Gates in a rollout, against the records of a real store: what is measured once, and what becomes of the candidate."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from infra.errors import EnginehouseError, GateRefused, GateUndecided, TritonError, UsageError
from infra.s3.bucket import Bucket
from tasks.explain.releases import release_lines, releases
from tasks.gates.choice import GATES, made_of
from tasks.gates.protocol import Trial
from tasks.kinds.protocol import LIMITS_FILE
from tasks.models.approval import ApprovalSpec
from tasks.models.catalogue import load_model
from tasks.models.gate_specs.base import GateSpec
from tasks.models.gates import GATE_SPECS, Gates
from tasks.serving.figures import UNCOUNTED
from tasks.steps.abandoned import give_up_abandoned
from tasks.steps.approve import approval, decide
from tasks.steps.context import Context
from tasks.steps.plan import Plan
from tasks.steps.promote import promote, roll_back
from tasks.steps.roll_out import roll_out
from tasks.steps.validate import validate
from tasks.steps.workspace import Workspace
from tasks.store.artifact import Producer
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.targets.approvals import Approvals
from tasks.targets.current import Current
from tasks.targets.gate_record import Comparison, Evidence
from tasks.targets.gate_records import GateRecords
from tasks.targets.node_report import ModelReport, NodeReport, ReleaseReport
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target

CATALOGUE = Path(__file__).parents[3] / "deployments" / "models"
NAME = "smollm2-135m"
When = Literal["never", "undecided", "always"]


class ScriptedSpec(GateSpec):
    """What the gate of these tests is asked for."""

    gate: Literal["scripted"] = "scripted"
    margin: float = 0.05


@dataclass
class ScriptedGate:
    """Gives what the test says, and remembers what it was given."""

    asked: ScriptedSpec
    compares: ClassVar[bool] = True
    answers: ClassVar[list[Evidence | EnginehouseError]] = []
    trials: ClassVar[list[Trial]] = []

    def run(self, trial: Trial) -> Evidence:
        self.trials.append(trial)
        answer = self.answers.pop(0)
        if isinstance(answer, EnginehouseError):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def added_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a new gate takes: an entry in each table, and no flow and no step."""
    monkeypatch.setitem(GATE_SPECS, "scripted", ScriptedSpec)
    monkeypatch.setitem(GATES, "scripted", made_of(ScriptedSpec, ScriptedGate))
    ScriptedGate.answers.clear()
    ScriptedGate.trials.clear()


class _Answering(BaseHTTPRequestHandler):
    """Triton's generate extension, for prompts that any sentence meets."""

    requests: ClassVar[list[str]] = []
    ids: ClassVar[set[str]] = set()

    def do_POST(self) -> None:
        self.requests.append(self.path)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.ids.add(body.get("id", ""))
        answer = json.dumps(
            {"text_output": "one two three four five", "num_output_tokens": body["max_tokens"]}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def triton() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@dataclass
class Line:
    """A model with gates on a target whose node has every release ready that is asked for."""

    context: Context
    target: Target
    snapshot: Identity
    plan: Plan
    files: Path
    triton: str
    prompts: list[str] = field(default_factory=lambda: _Answering.requests)

    def rolled(self, slots: int = 4, *, approval: When = "never", recreate: bool = False, **gates: Any) -> int:
        """A candidate of a recipe with so many slots."""
        model = self.plan.model
        prompts = tuple(prompt for prompt in model.prompts if not prompt.expect.stream_equals)
        changed = model.model_copy(
            update={
                "serving": model.serving.model_copy(update={"slots": slots}),
                "gates": Gates.model_validate(gates) if gates else None,
                "approval": ApprovalSpec(when=approval),
                "prompts": prompts,
            }
        )
        self.plan = Plan.of(changed, self.snapshot)
        producer = Producer(task="test", code="test")
        for ref, identity, inputs in (
            (self.plan.engine_ref, self.plan.engine, {}),
            (self.plan.repository_ref, self.plan.repository, {"engine": self.plan.engine_ref}),
        ):
            if self.context.store.find(ref) is None:
                self.context.store.publish(ref, identity, self.files, inputs=inputs, producer=producer)
        return roll_out(self.context, self.plan, "test", recreate=recreate, timeout_s=5).release

    def validate(self, release: int) -> Result:
        return validate(self.context, self.plan, "test", release)

    def live(self) -> int:
        """A public release, of which the store has the records alone."""
        release = self.target.reserve(
            NAME,
            lambda number: Intent(
                model=NAME,
                release=number,
                repository=f"repository/{number:064x}",
                digest="d",
                recipe={},
                source="s",
                flow_run="",
            ),
        ).release
        self.target.conclude(NAME, Result(release=release, state="passed"))
        self.target.move(NAME, lambda current: current.promoted(release))
        return release

    def node(self, public: int | None = None) -> None:
        self.target.report(
            NodeReport(
                node="one",
                target="test",
                http=self.triton,
                grpc="",
                triton_pid=1,
                memory_total_bytes=1 << 50,
                memory_available_bytes=1 << 50,
                models={
                    NAME: ModelReport(
                        public=public, releases={number: ReleaseReport(state="ready") for number in range(1, 9)}
                    )
                },
            )
        )

    def current(self) -> Current:
        """The wanted state, without who moved it last."""
        return self.target.current(NAME)[0].model_copy(update={"moves": ()})


@pytest.fixture
def line(bucket: Bucket, tmp_path: Path, triton: str) -> Line:
    context = Context(ArtifactStore(bucket), Workspace(tmp_path / "work"), "", 5.0)
    files = tmp_path / "files"
    files.mkdir()
    (files / LIMITS_FILE).write_text(json.dumps({"cache_bytes_per_token": 1}))
    snapshot = Identity({"source": "some"})
    plan = Plan.of(load_model(CATALOGUE / f"{NAME}.yaml"), snapshot)
    made = Line(context, context.target("test"), snapshot, plan, files, triton)
    made.node()
    return made


def evidence(p_worse: float, p_fine: float, **about: Any) -> Evidence:
    comparison = Comparison(
        measure="accuracy",
        candidate=0.7,
        other=0.72,
        difference=-0.02,
        lower=-0.04,
        upper=-0.01,
        margin=0.05,
        p_worse=p_worse,
        p_fine=p_fine,
        samples=200,
    )
    return Evidence(comparisons=(comparison,), **about)


PASSING, REFUSING, UNSURE = evidence(0.9, 0.01), evidence(0.001, 1.0), evidence(0.4, 0.3)
Answers = Callable[..., None]


@pytest.fixture
def answers() -> Answers:
    return lambda *given: ScriptedGate.answers.extend(given)


def test_a_file_without_gates_is_asked_its_prompts_alone(line: Line) -> None:
    release = line.rolled()
    _Answering.ids.clear()
    result = line.validate(release)
    assert _Answering.ids == {UNCOUNTED}, "what gates ask is in no figures of clients"
    assert (result.state, result.schema_version, result.undecided, result.asked) == ("passed", 1, None, "")
    assert [(gate.gate, gate.state) for gate in result.gates] == [("smoke", "passed")]
    assert len(result.prompts) == 2 and result.live is None and not ScriptedGate.trials
    record = GateRecords(line.target, NAME, release).read("smoke")
    assert record is not None and record.evidence.prompts == result.prompts


def test_a_first_release_passes_and_says_that_nothing_was_compared(line: Line, answers: Answers) -> None:
    answers(Evidence())
    result = line.validate(line.rolled(scripted=None))
    assert result.state == "passed" and "no release was live" in result.gates[1].reason
    assert ScriptedGate.trials[0].live is None


def test_a_candidate_is_compared_with_what_is_live(line: Line, answers: Answers) -> None:
    live = line.live()
    answers(PASSING)
    release = line.rolled(5, mine={"gate": "scripted", "margin": 0.05}, alpha=0.01)
    result = line.validate(release)
    (trial,) = ScriptedGate.trials
    assert trial.live is not None and (trial.live.release, trial.candidate.release) == (live, release)
    assert (trial.candidate.name, trial.live.name) == (f"{NAME}--r{release}", f"{NAME}--r{live}")
    assert (trial.alpha, trial.nodes[0].node, result.live) == (0.01, "one", live)
    assert [(gate.gate, gate.kind, gate.state) for gate in result.gates][1] == ("mine", "scripted", "passed")
    record = GateRecords(line.target, NAME, release).read("mine")
    assert record is not None and record.live == live and record.evidence == PASSING
    assert record.asked == {"gate": "scripted", "margin": 0.05}
    assert [each.gate for each in GateRecords(line.target, NAME, release).all()] == ["smoke", "mine"]


def test_a_run_that_comes_again_measures_nothing_twice(line: Line, answers: Answers) -> None:
    line.live()
    gone = TritonError("gone", code="triton-unreachable", retryable=True)
    answers(PASSING, gone, PASSING)
    release = line.rolled(5, one={"gate": "scripted"}, two={"gate": "scripted"})
    asked = len(line.prompts)
    with pytest.raises(TritonError):
        line.validate(release)
    asked_once = len(line.prompts) - asked
    assert line.validate(release).state == "passed"  # `one` and the prompts had their record
    assert len(ScriptedGate.trials) == 3 and len(line.prompts) == asked + asked_once
    assert line.validate(release).state == "passed" and len(ScriptedGate.trials) == 3


def test_a_refused_candidate_goes_and_its_figures_stay(line: Line, answers: Answers) -> None:
    live = line.live()
    answers(REFUSING)
    release = line.rolled(5, scripted=None)
    with pytest.raises(GateRefused) as caught:
        line.validate(release)
    assert (caught.value.code, caught.value.exit_code) == ("gate-refused", 3)
    assert "scripted: accuracy 70 %, against 72 % of the live release" in caught.value.message
    assert line.current() == Current(public=live)
    told = "\n".join(release_lines(releases(line.target, NAME)))
    assert "refused scripted, 200 samples: accuracy 70 %" in told
    document = json.dumps(releases(line.target, NAME).document())
    assert '"p_worse": 0.001' in document
    with pytest.raises(GateRefused):  # also for a run that comes later
        line.validate(release)


def test_what_cannot_be_excused_ends_the_gates(line: Line, answers: Answers) -> None:
    line.live()
    answers(Evidence(failures=("no answer",)))
    with pytest.raises(GateRefused, match="one: no answer"):
        line.validate(line.rolled(5, one={"gate": "scripted"}, two={"gate": "scripted"}))
    assert len(ScriptedGate.trials) == 1


def test_undecided_asks_and_the_candidate_waits(line: Line, answers: Answers, bucket: Bucket) -> None:
    live = line.live()
    answers(UNSURE)
    release = line.rolled(5, scripted=None)
    with pytest.raises(GateUndecided) as caught:
        line.validate(release)
    assert (caught.value.code, caught.value.exit_code) == ("gate-undecided", 4)
    assert line.current() == Current(public=live, candidates=(release,))
    result = line.target.result(NAME, release)
    assert result is not None and (result.state, result.undecided, result.schema_version) == ("undecided", "ask", 2)
    with pytest.raises(UsageError) as refused:
        promote(line.target, NAME, release)
    assert refused.value.code == "release-not-passed"
    # It is not thrown out for its age, and the same rebuild finds the same verdict.
    assert give_up_abandoned(bucket, "", 0.2, forgiven_s=0) == []
    assert line.rolled(5, scripted=None) == release
    with pytest.raises(GateUndecided):
        line.validate(release)
    # A file that asks for something else has it gated again, under another number.
    answers(PASSING)
    later = line.rolled(5, scripted={"margin": 0.08})
    assert later > release and line.validate(later).state == "passed"
    assert line.current().candidates == (later,)


def test_undecided_promotes_where_the_file_says_so(line: Line, answers: Answers) -> None:
    live = line.live()
    answers(UNSURE)
    release = line.rolled(5, scripted=None, undecided="promote")
    result = line.validate(release)
    assert (result.state, result.undecided, result.may_be_public) == ("undecided", "promote", True)
    line.node(release)
    assert promote(line.target, NAME, release, instead_of=result.live)
    assert line.current() == Current(public=release, previous=live)
    assert "undecided: the model's file said `promote`" in "\n".join(release_lines(releases(line.target, NAME)))


def test_undecided_refuses_where_the_file_says_so(line: Line, answers: Answers) -> None:
    live = line.live()
    answers(UNSURE)
    with pytest.raises(GateRefused, match="undecided: scripted"):
        line.validate(line.rolled(5, scripted=None, undecided="refuse"))
    assert line.current() == Current(public=live)


def test_without_data_nothing_passes(line: Line, answers: Answers) -> None:
    line.live()
    answers(Evidence())
    with pytest.raises(GateUndecided, match="nothing was compared with it"):
        line.validate(line.rolled(5, scripted=None))


def test_a_candidate_in_the_live_ones_place_cannot_wait(line: Line, answers: Answers) -> None:
    live = line.live()
    answers(Evidence())
    release = line.rolled(5, scripted=None)
    line.target.move(NAME, lambda current: current.model_copy(update={"alone": True}))
    with pytest.raises(GateRefused, match="memory does not hold it beside the candidate"):
        line.validate(release)
    assert ScriptedGate.trials[0].live is None
    assert line.current() == Current(public=live, alone=True)


def test_another_release_went_live_meanwhile(line: Line, answers: Answers) -> None:
    first, _ = line.live(), line.live()
    answers(PASSING)
    release = line.rolled(5, scripted=None)
    result = line.validate(release)
    line.target.move(NAME, lambda current: current.promoted(first))  # a rollback
    with pytest.raises(UsageError) as caught:
        promote(line.target, NAME, release, instead_of=result.live)
    assert caught.value.code == "release-moved" and line.current().public == first
    assert not promote(line.target, NAME, release, instead_of=result.live, unless=lambda: True)
    # The next rebuild compares it with what is live then, under another number.
    answers(PASSING)
    later = line.rolled(5, scripted=None)
    assert later > release and line.validate(later).live == first


def test_what_was_asked_otherwise_is_measured_anew(line: Line, answers: Answers) -> None:
    line.live()
    gone = TritonError("gone", code="triton-unreachable", retryable=True)
    answers(REFUSING, gone)
    release = line.rolled(5, one={"gate": "scripted"}, two={"gate": "scripted"})
    with pytest.raises(TritonError):
        line.validate(release)
    assert line.rolled(5, one={"gate": "scripted"}, two={"gate": "scripted"}) == release
    answers(PASSING, PASSING)
    later = line.rolled(5, one={"gate": "scripted", "margin": 0.5}, two={"gate": "scripted"})
    assert later > release and line.validate(later).state == "passed"


def test_records_of_another_comparison_are_not_taken(line: Line, answers: Answers) -> None:
    first = line.live()
    gone = TritonError("gone", code="triton-unreachable", retryable=True)
    answers(gone)
    release = line.rolled(5, scripted=None)
    with pytest.raises(TritonError):
        line.validate(release)
    line.target.move(NAME, lambda current: current.model_copy(update={"public": None}))
    with pytest.raises(UsageError) as caught:
        line.validate(release)
    assert caught.value.code == "release-moved" and str(first) in caught.value.message


def test_a_person_decides_where_the_file_says_so(line: Line, answers: Answers) -> None:
    live = line.live()
    answers(PASSING)
    release = line.rolled(5, approval="always", scripted=None)
    assert line.validate(release).state == "passed" and approval(line.target, NAME, release) is None
    # The same rebuild finds the same candidate and measures nothing, before the decision and after it.
    assert line.rolled(5, approval="always", scripted=None) == release
    with pytest.raises(UsageError) as refused:
        promote(line.target, NAME, release)
    assert refused.value.code == "release-not-approved"
    decide(line.target, NAME, None, "approved", "a@b", "")
    assert line.rolled(5, approval="always", scripted=None) == release
    assert line.validate(release).state == "passed" and len(ScriptedGate.trials) == 1
    line.node(release)
    assert promote(line.target, NAME, release)
    assert line.current() == Current(public=release, previous=live)
    # It was public once, and comes back by a rollback whatever is live then.
    later = line.live()
    line.node(release)
    assert roll_back(line.target, NAME, to=release).instead_of == later


def test_a_person_decides_what_the_gates_could_not(line: Line, answers: Answers) -> None:
    live = line.live()
    answers(UNSURE)
    release = line.rolled(5, approval="undecided", scripted=None)
    assert line.validate(release).undecided == "ask" and approval(line.target, NAME, release) is None
    decide(line.target, NAME, None, "approved", "a@b", "I read the answers")
    line.node(release)
    assert promote(line.target, NAME, release)
    assert line.current() == Current(public=release, previous=live)
    # What passes needs nobody.
    answers(PASSING)
    passed = line.rolled(6, approval="undecided", scripted=None)
    line.validate(passed)
    assert Approvals(line.target, NAME, passed).request() is None


def test_another_candidate_supersedes_one_that_waits(line: Line, answers: Answers) -> None:
    line.live()
    answers(PASSING, PASSING, PASSING)
    release = line.rolled(5, approval="always", scripted=None)
    line.validate(release)
    line.validate(later := line.rolled(6, approval="always", scripted=None))
    superseded = Approvals(line.target, NAME, release).decision()
    assert superseded is not None and superseded.state == "superseded"
    assert line.current().candidates == (later,)
    # A file that asks nobody any more has it gated anew.
    line.validate(last := line.rolled(6, scripted=None))
    assert last > later and Approvals(line.target, NAME, last).request() is None


def test_an_approved_candidate_is_compared_anew_where_another_went_live(line: Line) -> None:
    first = line.rolled(5, approval="always")  # of a model that has nothing public
    line.validate(first)
    decide(line.target, NAME, None, "approved", "a@b", "")
    line.live()
    with pytest.raises(UsageError) as caught:
        promote(line.target, NAME, first)
    assert caught.value.code == "release-moved"
    assert line.rolled(5, approval="always") > first


def test_nobody_is_waited_for_in_the_live_one_s_place(line: Line) -> None:
    live = line.live()
    line.target.move(NAME, lambda current: current.with_candidate(live, alone=True).without_candidates(live))
    line.node(live)
    report = line.target.nodes()[0]
    line.target.report(report.model_copy(update={"memory_available_bytes": 1}))
    with pytest.raises(UsageError) as caught:
        line.rolled(5, approval="always", recreate=True)
    assert caught.value.code == "approval-alone" and line.current().candidates == ()
