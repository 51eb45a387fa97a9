"""A real model on the real Triton, asked as clients ask it."""

from __future__ import annotations

import importlib
import json
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from deployments.gateway.state import TargetState
from infra.errors import TritonError
from infra.triton.client import TritonClient
from tasks.triton.placement import place_release, placed_models, write_public
from tests.deployments.gateway.house import house, node
from tests.tasks.kinds.served_kinds import ADAPTERS, CHAT, KINDS, QUESTION, RAW, SLOW, TRT_ENGINES, Fields, Kind, Role
from tests.tasks.lora.small_adapters import nearest
from tests.tasks.serving.published import ALWAYS, NEUTRAL, inputs, read
from tests.tasks.serving.published import streamed as streamed_by
from tests.tasks.serving.small_tokenizers import byte_level

if TYPE_CHECKING:
    from tests.conftest import RunningTriton

triton_http: Any = importlib.import_module("tritonclient.http")
triton_grpc: Any = importlib.import_module("tritonclient.grpc")


def marked(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in names]


on_tensorrt_llm = pytest.mark.parametrize("kind", marked(TRT_ENGINES), indirect=True, scope="module")


@pytest.fixture(scope="module", params=marked(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param](request)


@pytest.fixture(scope="module")
def triton(
    kind: Kind, start_triton: Callable[[str], RunningTriton], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningTriton]:
    """A Triton with the releases of one kind, and public names for the first of each."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        started = start_triton(f"serving-{kind.name}")
    for (model, release), role in kind.releases.items():
        place(started, kind, model, release, role, tmp_path_factory.mktemp(model))
    with ThreadPoolExecutor() as pool:
        loads = [pool.submit(load, started, model, release) for model, release in kind.releases]
    for each in loads:
        each.result()
    for model in (CHAT, RAW):
        point(started, model, 1)
    write_public(started.repository, CHAT, 1, "ensemble")
    started.client.load("ensemble")
    yield started
    started.process.terminate()
    started.process.wait(60)


@pytest.fixture(scope="module")
def client(triton: RunningTriton) -> TritonClient:
    return triton.client


def place(triton: RunningTriton, kind: Kind, model: str, release: int, role: Role, folder: Path) -> None:
    artifact, engine = folder / "artifact", folder / "engine"
    artifact.mkdir()
    engine.mkdir()
    kind.write(artifact, engine, role)
    place_release(artifact, engine, triton.repository, model, release, grpc=triton.client.grpc)


def load(triton: RunningTriton, model: str, release: int) -> None:
    for name in placed_models(triton.repository, model, release):
        triton.client.load(name)


def point(triton: RunningTriton, model: str, release: int) -> None:
    write_public(triton.repository, model, release)
    triton.client.load(model)


def ask(client: TritonClient, model: str = CHAT, **fields: Any) -> str:
    return client.generate(model, {**QUESTION, **fields}).text


@contextmanager
def refused(named: str) -> Generator[None]:
    """Expect Triton to answer with an error that names a field, a deadline or a model: `named` is its pattern."""
    with pytest.raises(TritonError) as caught:
        yield
    assert caught.value.code == "triton-refused" and not caught.value.retryable
    assert re.search(named, caught.value.message)


def streamed(client: TritonClient, model: str = CHAT, **fields: Any) -> list[str]:
    return [piece.text for piece in client.generate_stream(model, {**QUESTION, "stream": True, **fields})]


def test_the_published_body_works_with_and_without_its_parameters_object(client: TritonClient) -> None:
    words: dict[str, Any] = {"bad_words": [""], "stop_words": [""]}
    flat = ask(client, temperature=0.0, **words)
    body = {"text_input": QUESTION["text_input"], "parameters": {"max_tokens": 24, "temperature": 0.0, **words}}
    assert flat
    assert client.generate(CHAT, body).text == flat


def test_the_chat_template_is_applied_where_the_release_says_so(kind: Kind, client: TritonClient) -> None:
    rendered = kind.rendered.format(QUESTION["text_input"])
    assert ask(client, temperature=0.0) == ask(client, RAW, text_input=rendered) != ask(client, RAW)


@pytest.mark.parametrize("field", ["seed", "random_seed"])
def test_a_seed_repeats_and_pieces_add_up_to_the_whole(client: TritonClient, field: str) -> None:
    def seeded(seed: int) -> dict[str, Any]:
        return {field: seed}

    first = ask(client, **seeded(7))
    assert ask(client, **seeded(7)) == first
    pieces = streamed(client, **seeded(7))
    assert len(pieces) > 8
    assert "".join(pieces) == first
    assert ask(client, **seeded(8)) != first
    # All 64 bits count, though llama.cpp's own seeds have 32.
    assert ask(client, **seeded(7 + 2**32)) != first


def test_a_request_chooses_its_adapter_and_a_batch_mixes_them(kind: Kind, client: TritonClient) -> None:
    if not kind.takes_adapters:
        with refused("'lora_name' is 'sql'; this model has no adapters"):
            ask(client, lora_name="sql")
        return

    def adapted(name: str) -> str:
        return ask(client, lora_name=name, temperature=0.0, max_tokens=8)

    *mixed, last = ADAPTERS
    alone = [adapted(name) for name in ("", *mixed)]
    assert len(set(alone)) == len(alone) and alone[0] == ask(client, temperature=0.0, max_tokens=8)
    with ThreadPoolExecutor(6) as pool:
        assert [nearest(answer, alone) for answer in pool.map(adapted, ["", *mixed] * 2)] == alone * 2
    # The stand-in's engine has room for two, so it drops one, and is given it again.
    assert adapted(last) not in alone
    assert [nearest(adapted(name), alone) for name in mixed] == alone[1:]
    assert "".join(streamed(client, lora_name=mixed[0], temperature=0.0, max_tokens=8)) == alone[1]
    with refused(f"'lora_name' is 'latin'; this model has {', '.join(ADAPTERS)}"):
        adapted("latin")


def test_without_a_seed_answers_differ(client: TritonClient) -> None:
    assert len({ask(client, temperature=2.0) for _ in range(3)}) > 1


def test_sampling_is_honoured(client: TritonClient) -> None:
    greedy = ask(client, temperature=0.0)
    assert ask(client, top_k=1) == ask(client, top_p=1e-6) == ask(client, top_k=0, top_p=0.0) == greedy
    repeating = {"text_input": "ha ha ha ha ha ha ha ha", "max_tokens": 16}
    plain = ask(client, RAW, **repeating)
    for penalty in ({"repetition_penalty": 3.0}, {"presence_penalty": 9.0}, {"frequency_penalty": 9.0}):
        assert ask(client, RAW, **repeating, **penalty) != plain


def test_max_tokens_bounds_the_answer(client: TritonClient) -> None:
    answer = client.generate(CHAT, {**QUESTION, "max_tokens": 5, "temperature": 0.0, "return_log_probs": True})
    assert len(answer.log_probs) == 5


def test_stop_words_end_the_answer_and_are_not_in_it(client: TritonClient) -> None:
    whole = ask(client, temperature=0.0, max_tokens=40)
    # Begins and ends inside of tokens.
    word = whole[31:45]
    before = whole[: whole.index(word)]
    assert ask(client, temperature=0.0, max_tokens=40, stop_words=["not in it", word]) == before
    assert "".join(streamed(client, temperature=0.0, max_tokens=40, stop_words=[word])) == before
    # What only begins like a stop word is part of the answer, also at its very end.
    assert ask(client, temperature=0.0, max_tokens=40, stop_words=[whole[-6:] + "#"]) == whole


def test_bad_words_are_not_in_the_answer(client: TritonClient) -> None:
    whole = ask(client, temperature=0.0, max_tokens=40)
    words = sorted(set(whole.split()), key=len)[-3:]
    answer = ask(client, temperature=0.0, max_tokens=40, bad_words=words)
    assert answer
    assert all(word in whole and word not in answer for word in words)


def test_log_probabilities_are_one_a_token_and_add_up(client: TritonClient) -> None:
    asked = {**QUESTION, "temperature": 0.0, "return_log_probs": True}
    whole = client.generate(CHAT, asked)
    pieces = list(client.generate_stream(CHAT, {**asked, "stream": True}))
    assert whole.text == ask(client, temperature=0.0)
    assert len(whole.log_probs) == QUESTION["max_tokens"]
    assert all(value <= 0 for value in whole.log_probs)
    joined = [value for piece in pieces for value in piece.log_probs]
    assert joined == pytest.approx(whole.log_probs, abs=1e-3)
    assert client.generate(CHAT, {**QUESTION, "max_tokens": 3}).log_probs == ()


def test_log_probabilities_say_of_which_tokens_they_are(triton: RunningTriton, kind: Kind) -> None:
    asked = {**QUESTION, "temperature": 0.0, "return_log_probs": True}
    address = f"http://127.0.0.1:{triton.ports.http}/v2/models/{CHAT}/generate"

    def ask(**fields: Any) -> dict[str, Any]:
        answer = httpx.post(address, json={**asked, **fields}, trust_env=False, timeout=60)
        return json.loads(answer.content.decode(errors="replace"))

    answer = ask(return_output_tokens=True, skip_special_tokens=False)
    assert "".join(answer["output_tokens"]).lstrip() == answer["text_output"].lstrip()
    assert len(answer["output_tokens"]) == len(answer["output_log_probs"]) and "top_tokens" not in answer
    told = ask(return_output_tokens=True, num_top_log_probs=2)
    if not kind.tells_the_likeliest:
        assert "'num_top_log_probs'" in told["error"] and told["error"].endswith("[invalid]")
        return
    assert told["top_tokens"][::2] == told["output_tokens"] == answer["output_tokens"]
    assert len(told["top_log_probs"]) == 2 * len(told["output_tokens"])
    one = triton.client.generate(CHAT, {**asked, "max_tokens": 1, "num_top_log_probs": 3})
    assert len(one.likeliest) == 3 and one.likeliest[0] == (told["top_tokens"][0], pytest.approx(one.log_probs[0]))
    needs = ask(num_top_log_probs=2, return_log_probs=False)
    assert "'num_top_log_probs' needs 'return_log_probs'" in needs["error"]


def test_a_text_of_others_is_scored_or_refused(kind: Kind, client: TritonClient) -> None:
    if not kind.scores:
        with refused("'given_output' cannot be honoured"):
            client.score(CHAT, {"text_input": QUESTION["text_input"]}, "un, deux")
        return
    asked = {**QUESTION, "temperature": 0.0}
    own = client.generate(CHAT, {**asked, "return_log_probs": True})
    scored = client.score(CHAT, {"text_input": QUESTION["text_input"]}, own.text)
    assert "".join(scored.tokens) == own.text
    assert scored.log_probs == pytest.approx(own.log_probs, abs=1e-3) and all(scored.agrees)
    other = client.score(CHAT, {"text_input": QUESTION["text_input"]}, "Qzj!")
    assert sum(other.log_probs) < sum(other.best_log_probs) and not all(other.agrees)
    with refused("'max_tokens' cannot be honoured with a 'given_output'"):
        client.score(CHAT, QUESTION, own.text)


def test_characters_are_never_split(kind: Kind, client: TritonClient) -> None:
    party = {"text_input": "🎉🎊🥳🎉🎊🥳🎉🎊🥳🎉🎊🥳", "max_tokens": 12}
    pieces = streamed(client, RAW, **party)
    answer = "".join(pieces)
    assert answer == ask(client, RAW, **party)
    # However many come at once, where the machine is busy.
    assert answer and all(ord(character) > 0xFFFF for character in answer)
    logged = {**party, "return_log_probs": True}
    if kind.log_probs_within_characters:
        assert len(client.generate(RAW, logged).log_probs) == party["max_tokens"]
        return
    with refused("'return_log_probs'"):
        client.generate(RAW, logged)


def test_the_prompt_is_in_the_output_where_it_is_wanted(client: TritonClient) -> None:
    answer = ask(client, temperature=0.0)
    assert ask(client, temperature=0.0, exclude_input_in_output=False) == QUESTION["text_input"] + answer
    # A stream never has it.
    assert "".join(streamed(client, temperature=0.0, exclude_input_in_output=False)) == answer


def test_what_cannot_be_honoured_is_an_error(kind: Kind, client: TritonClient) -> None:
    always: tuple[tuple[Fields, str], ...] = (
        ({"max_token": 5}, "'max_token' is not a field"),
        ({"parameters": {"unheard_of": True}}, "'unheard_of' is not a field"),
        ({"max_tokens": 0}, "'max_tokens'"),
        ({"top_p": 2.0}, "'top_p'"),
    )
    for fields, named in (*always, *kind.refused):
        for question in (ask, streamed):
            with refused(named):
                question(client, **fields)


def test_an_answer_keeps_to_its_guide(kind: Kind, client: TritonClient) -> None:
    for guide_type, guide, pattern in kind.guides:
        guided: Fields = {
            "guided_decoding_guide_type": guide_type,
            "guided_decoding_guide": guide,
            "seed": 7,
            "top_k": 20,
        }
        answer = ask(client, max_tokens=64, **guided)
        assert re.fullmatch(pattern, answer), (guide_type, answer)
        assert "".join(streamed(client, max_tokens=64, **guided)) == answer
    if kind.guides:
        begun = ask(client, max_tokens=8, guided_decoding_guide_type="json", temperature=0.0)
        assert re.match(r'[\[{"\dtfn-]', begun) and begun != ask(client, max_tokens=8, temperature=0.0)


def test_a_missing_prompt_is_named(client: TritonClient) -> None:
    with refused("'text_input'"):
        ask(client, RAW, text_input="")
    with refused("send 'text_input' or 'messages'"):
        client.generate(CHAT, {"max_tokens": 4})


def outputs(triton: RunningTriton, **fields: Any) -> dict[str, Any]:
    """All outputs of a whole answer, as Triton's own JSON has them."""
    body = {"max_tokens": 12, "temperature": 0.0, **fields}
    answer = httpx.post(f"http://127.0.0.1:{triton.ports.http}/v2/models/{CHAT}/generate", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_chat_is_what_the_template_makes_of_it(kind: Kind, triton: RunningTriton) -> None:
    said = [{"role": "user", "content": QUESTION["text_input"]}]
    one = outputs(triton, text_input=QUESTION["text_input"])
    assert outputs(triton, messages=json.dumps(said))["text_output"] == one["text_output"]
    longer = [
        {"role": "system", "content": "You count in French."},
        *said,
        {"role": "assistant", "content": "un, deux"},
        {"role": "user", "content": "Go on."},
    ]
    counted = outputs(triton, messages=json.dumps(longer), return_num_input_tokens=True)
    assert (
        counted["num_input_tokens"]
        > outputs(triton, messages=json.dumps(said), return_num_input_tokens=True)["num_input_tokens"]
    )


def test_counts_and_the_reason_of_the_end(kind: Kind, triton: RunningTriton) -> None:
    counts = {"return_num_input_tokens": True, "return_num_output_tokens": True}
    limited = outputs(triton, text_input="1 2 3 4 5 6 7 8 9", max_tokens=5, **counts)
    assert (limited["num_output_tokens"], limited["finish_reason"]) == (5, "length")
    assert limited["num_input_tokens"] > 0 and (limited["batch_index"], limited["sequence_index"]) == (0, 0)
    words = limited["text_output"].split()
    stopped = outputs(triton, text_input="1 2 3 4 5 6 7 8 9", max_tokens=5, stop_words=[words[-1]], **counts)
    assert stopped["finish_reason"] == "stop_words" and stopped["num_output_tokens"] <= 5
    assert "num_input_tokens" not in outputs(triton, text_input="a")


def test_values_that_change_nothing_are_accepted(kind: Kind, client: TritonClient) -> None:
    neutral: dict[str, Any] = {
        "beam_width": 1,
        "length_penalty": 1.0,
        "min_tokens": 0,
        "end_id": kind.end_id,
        "pad_id": 0,
        "stream": False,
    }
    assert ask(client, temperature=0.0, **neutral) == ask(client, temperature=0.0)


def published(triton: RunningTriton, *prompts: str, outputs: Sequence[str] = (), **fields: Any) -> list[Any]:
    """The responses to what NVIDIA's published client sends, at the name that it knows."""
    given = inputs(triton_grpc, prompts, QUESTION["max_tokens"], {**ALWAYS, **fields})
    return streamed_by(triton.client.grpc, "ensemble", given, outputs)


def test_published_clients_read_their_answers(triton: RunningTriton, client: TritonClient, kind: Kind) -> None:
    prompt, words = QUESTION["text_input"], {"stop_words": ["zzz", "yyy"], "bad_words": ["xxx"]}
    answer = ask(client, temperature=0.0)
    assert read(published(triton, prompt)) == [answer]
    assert read(published(triton, prompt, **NEUTRAL, end_id=kind.end_id)) == [prompt + answer]
    (logged,) = published(
        triton, prompt, **words, return_log_probs=True, outputs=["text_output", "cum_log_probs", "output_log_probs"]
    )
    assert [logged.as_numpy(name).shape for name in ("cum_log_probs", "output_log_probs")] == [(1, 1), (1, 1, 24)]
    pieces = published(triton, prompt, stream=True, exclude_input_in_output=False)
    assert len(pieces) > 8 and read(pieces) == [answer], "a stream never has the prompt"


def test_published_clients_read_each_row_of_a_batch(triton: RunningTriton, client: TritonClient) -> None:
    prompts = ["One two three", "Paris is the capital of", "The sky is"]
    alone = [ask(client, text_input=text, temperature=0.0) for text in prompts]
    for outputs in ((), ("text_output", "batch_index", "sequence_index")):
        rows = read(published(triton, *prompts, outputs=outputs), rows=3)
        assert [text[:8] for text in rows] == [text[:8] for text in alone]
    with pytest.raises(Exception, match="'stream'"):
        published(triton, *prompts, stream=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_return_sequences", 2),
        ("return_context_logits", True),
        ("return_generation_logits", True),
        ("return_perf_metrics", True),
        ("return_kv_cache_reuse_stats", True),
        ("embedding_bias_words", ["x"]),
        ("embedding_bias_weights", [1.0]),
    ],
)
def test_published_clients_hear_the_name_of_what_no_kind_here_can_do(
    triton: RunningTriton, field: str, value: Any
) -> None:
    with pytest.raises(Exception, match=f"'{field}' cannot be honoured"):
        published(triton, "a", **{field: value})


@pytest.mark.parametrize("library", [triton_http, triton_grpc])
def test_published_unary_clients_are_answered_at_the_gateway(
    triton: RunningTriton, client: TritonClient, library: Any
) -> None:
    """Triton alone has no unary answers of a model that can stream."""
    prompts = [QUESTION["text_input"], "The sky is"]
    known = {"ensemble": CHAT}
    with house() as gateway:
        place = node("one", triton.client.grpc, {CHAT: 1}, aliases=known)
        gateway.watch.tell(TargetState("test", {CHAT: 1}, (place,), known))
        url = gateway.grpc if library is triton_grpc else gateway.url.removeprefix("http://")
        with library.InferenceServerClient(url) as asking:
            given = inputs(library, prompts, 8, {"bad_words": [""], "stop_words": [""], "temperature": 0.0})
            answer = asking.infer("ensemble", given, outputs=[library.InferRequestedOutput("text_output")])
            texts = [text.decode() for text in answer.as_numpy("text_output")]
            alone = [ask(client, text_input=text, max_tokens=8, temperature=0.0) for text in prompts]
            assert [text[:8] for text in texts] == [text[:8] for text in alone] and len(texts) == 2
            assert answer.as_numpy("batch_index") is None
            name = answer.get_response()
            assert (name["model_name"] if isinstance(name, dict) else name.model_name) == "ensemble"


def test_eight_streams_run_at_once(client: TritonClient) -> None:
    def first_and_last(number: int) -> tuple[float, float, int]:
        asked = {**QUESTION, "max_tokens": 32, "stream": True, "seed": number}
        started = time.monotonic()
        pieces = list(client.generate_stream(CHAT, asked))
        return started + pieces[0].seconds, started + pieces[-1].seconds, len(pieces)

    with ThreadPoolExecutor(8) as pool:
        times = list(pool.map(first_and_last, range(8)))
    assert min(count for _, _, count in times) > 1
    # Each had begun before any of the longer ones had ended: nobody waited for a slot.
    assert max(first for first, _, _ in times) < max(last for _, last, _ in times)
    assert sum(last > max(first for first, _, _ in times) for _, last, _ in times) >= 4


def test_grpc_streams_say_the_same(client: TritonClient) -> None:
    asked = {**QUESTION, "seed": 7, "stream": True}
    for model in (CHAT, f"{CHAT}--r1", f"{CHAT}--r1--llm"):
        with client.stream(model, asked) as stream:
            assert "".join(piece.text for piece in stream) == ask(client, seed=7)
    with refused("'beam_width'"), client.stream(CHAT, {**asked, "beam_width": 2}) as stream:
        list(stream)


@pytest.mark.parametrize("model", [RAW, f"{RAW}--r1", f"{RAW}--r1--llm"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_stream_whose_client_leaves_frees_its_slot(
    kind: Kind, client: TritonClient, model: str, protocol: str
) -> None:
    long = {"text_input": "1 2 3 4 5 6 7 8 9", "max_tokens": 1500, "stream": True, "bad_words": ["\n"]}
    if protocol == "grpc":
        with client.stream(model, long) as stream:
            next(iter(stream))
    else:
        next(client.generate_stream(model, long))  # and close it
    # The one slot would be busy for its whole deadline.
    assert client.generate(RAW, {**QUESTION, "max_tokens": 2}).seconds < kind.deadline_s * 2 / 3


def test_the_deadline_ends_what_runs_and_what_waits(kind: Kind, client: TritonClient) -> None:
    long = {"text_input": "1 2 3 4 5 6 7 8 9", "max_tokens": 1500, "bad_words": ["\n"]}

    def seconds_to_fail(_: int) -> float:
        started = time.monotonic()
        with refused(f"{kind.deadline_s:g} s"):
            client.generate(RAW, long)
        return time.monotonic() - started

    with ThreadPoolExecutor(kind.waiting) as pool:
        outcomes = list(pool.map(seconds_to_fail, range(kind.waiting)))
    assert all(kind.deadline_s - 0.1 < seconds < kind.deadline_s + 3 for seconds in outcomes)
    # All have given up their places.
    assert client.generate(RAW, {**QUESTION, "max_tokens": 2}).seconds < kind.deadline_s * 2 / 3


def stubs(triton: RunningTriton) -> dict[int, str]:
    """The processes of loaded models, interpreters and what these have started, by pid: the model of each."""
    children = psutil.Process(triton.process.pid).children(recursive=True)
    code = {child.pid: Path(argument) for child in children for argument in child.cmdline() if argument.endswith(".py")}
    return {pid: path.relative_to(triton.repository).parts[0] for pid, path in code.items()}


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
def test_the_public_name_moves_under_streams_and_no_model_starts_again(kind: Kind, triton: RunningTriton) -> None:
    before, failures, stop = stubs(triton), list[str](), threading.Event()
    expected = {ask(triton.client, f"{CHAT}--r{release}", temperature=0.0, max_tokens=8)[:4] for release in (1, 2)}
    finished = [0] * 4

    def keep_asking(index: int) -> None:
        while not stop.is_set():
            try:
                text = "".join(streamed(triton.client, temperature=0.0, max_tokens=8))
                if text[:4] not in expected:
                    failures.append(text)
            except TritonError as error:
                failures.append(str(error))
            finished[index] += 1

    threads = [threading.Thread(target=keep_asking, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(10):
            done = sum(finished)
            point(triton, CHAT, 2 - turn % 2)
            wait_for(lambda done=done: sum(finished) > done)
        wait_for(lambda: min(finished) >= 2)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        point(triton, CHAT, 1)
    assert failures == []
    assert min(finished) >= 2
    assert stubs(triton) == before
    placed = {name for key in kind.releases for name in placed_models(triton.repository, *key)}
    assert set(before.values()) == {name for name in placed if not name.endswith(tuple(f"--r{n}" for n in (1, 2)))}
    assert not list(triton.repository.rglob("__pycache__"))


def test_a_signal_to_its_whole_group_does_not_end_a_models_engine(triton: RunningTriton) -> None:
    for process in stubs(triton):
        psutil.Process(process).terminate()
    time.sleep(0.2)
    assert ask(triton.client, temperature=0.0, max_tokens=4)
    assert ask(triton.client, RAW, text_input="1 2 3 4", max_tokens=4)


@on_tensorrt_llm
def test_an_answer_ends_no_sooner_than_it_may_and_at_the_tokens_that_end_it(kind: Kind, client: TritonClient) -> None:
    asked = {**QUESTION, "max_tokens": 60, "temperature": 0.0, "return_log_probs": True}
    plain = client.generate(CHAT, asked)
    assert len(plain.log_probs) < 60
    assert len(client.generate(CHAT, {**asked, "min_tokens": 50}).log_probs) >= 50
    # "!", by its number in the vocabulary.
    assert "!" in plain.text
    end_id = byte_level().encode("!", add_special_tokens=False)[0]
    ended = client.generate(CHAT, {**asked, "end_id": end_id})
    assert ended.text == plain.text[: plain.text.index("!")]
    assert ended.log_probs == pytest.approx(plain.log_probs[: len(ended.log_probs)], abs=1e-3)


@on_tensorrt_llm
def test_beams_find_likelier_answers(kind: Kind, client: TritonClient) -> None:
    asked = {**QUESTION, "text_input": "un, deux", "max_tokens": 12, "return_log_probs": True}
    greedy, best = (client.generate(RAW, {**asked, "beam_width": width}) for width in (1, 4))
    assert sum(best.log_probs) >= sum(greedy.log_probs)
    assert client.generate(RAW, {**asked, "beam_width": 4, "length_penalty": 2.0}).text


@pytest.mark.parametrize("kind", TRT_ENGINES[-1:], indirect=True, scope="module")
def test_what_is_not_decoupled_answers_whole_and_refuses_streams(
    kind: Kind, triton: RunningTriton, tmp_path: Path
) -> None:
    place(triton, kind, "whole", 1, Role(1, 2048, False, 3.0, greedy=True, streams=False), tmp_path)
    load(triton, "whole", 1)
    client, model = triton.client, "whole--r1"
    assert ask(client, model) == ask(client, RAW)
    with refused("'stream'"):
        streamed(client, model)
    with refused("3 s"):
        ask(client, model, text_input="1 2 3 4 5 6 7 8 9", max_tokens=1500)
    assert client.generate(model, {**QUESTION, "max_tokens": 2}).seconds < 2
    for name in reversed(placed_models(triton.repository, "whole", 1)):
        client.unload(name)


@on_tensorrt_llm
def test_a_backend_that_is_gone_is_an_error_until_it_is_back(kind: Kind, triton: RunningTriton) -> None:
    backend = f"{CHAT}--r2--tensorrt_llm"
    triton.client.unload(backend)
    with refused(backend):
        ask(triton.client, f"{CHAT}--r2")
    triton.client.load(backend)
    assert ask(triton.client, f"{CHAT}--r2")


def test_an_unloaded_release_gives_its_memory_back(triton: RunningTriton) -> None:
    with triton.client.stream(f"{CHAT}--r2--llm", {**QUESTION, "stream": True}) as stream:
        next(iter(stream))
    with pytest.raises(TritonError):
        ask(triton.client, f"{CHAT}--r2", max_tokens=0)
    assert ask(triton.client, f"{CHAT}--r2")
    names = placed_models(triton.repository, CHAT, 2)
    processes = [psutil.Process(number) for number, name in stubs(triton).items() if name in names]
    assert processes
    for name in reversed(names):
        triton.client.unload(name)
    psutil.wait_procs(processes, timeout=10)
    assert not {process.pid for process in processes} & stubs(triton).keys()
    assert ask(triton.client, max_tokens=4)
