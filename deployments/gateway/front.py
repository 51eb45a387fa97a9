"""One request through the gateway: its key, its model, its node, its responses. Every way in goes through here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext, suppress

from deployments.gateway.adapters import choose_adapter
from deployments.gateway.call import Call, Caller, recorded, request_id
from deployments.gateway.canary import canary_of, first_code, is_curable
from deployments.gateway.contract import Contract
from deployments.gateway.figures import Figures
from deployments.gateway.generate import Given, generate_request
from deployments.gateway.heard import Heard
from deployments.gateway.keys import Key, Keys
from deployments.gateway.limits import Limits
from deployments.gateway.messages import InferRequest, InferResponse
from deployments.gateway.names import Name, unknown
from deployments.gateway.places import PlaceKey, Places
from deployments.gateway.routing import MOST_TRIES, PATIENCE_SECONDS, Routing, asked_of, name_of, unanswered
from deployments.gateway.shadow import MOST_AT_ONCE, Shadows
from deployments.gateway.state import Known, Watch
from deployments.gateway.tensors import Values, values_of
from deployments.gateway.triton import Channels, NodeFailed, ending
from infra.errors import EnginehouseError, GatewayError
from tasks.targets.parsers import ModelParsers

_MOST_LOST = 1
"""How often a request is sent again that a node may have begun: one that ends each model that reads it ends two."""


Traced = Callable[[Call, Caller], AbstractContextManager[None]]
"""What is around a call, so that it has a span."""


def untraced(call: Call, caller: Caller) -> AbstractContextManager[None]:
    """Nothing around a call."""
    return nullcontext()


class Front:
    """The gateway without its servers. All calls come from one event loop."""

    def __init__(
        self,
        watch: Watch,
        keys: Keys,
        *,
        most_requests: int = 1000,
        deadline_s: float = 600.0,
        patience_s: float = PATIENCE_SECONDS,
        most_shadows: int = MOST_AT_ONCE,
        traced: Traced = untraced,
    ) -> None:
        self.figures = Figures()
        self._watch = watch
        self._keys = keys
        self._limits = Limits(most_requests)
        self._deadline_s = deadline_s
        self._traced = traced
        self._channels = Channels()
        self._routing = Routing(watch, self._channels, patience_s)
        self._shadows = Shadows(self._routing, self._channels, self.figures, most_shadows)
        self._draining = False
        self._idle = asyncio.Event()
        """Set whenever the last running request has ended."""

    @property
    def known(self) -> Known:
        return self._watch.known

    @property
    def ready(self) -> bool:
        """Whether clients should come here."""
        return self.known.ready and not self._draining

    @property
    def keys_required(self) -> bool:
        return self._keys.required

    def note_state(self) -> None:
        """Bring figures and channels up to what is known of the targets."""
        known = self.known
        self._channels.keep(known.nodes)
        models = known.models if known.reading else {}
        self.figures.state(
            {model: len(places.nodes) for model, places in models.items()},
            known.releases,
            stale=bool(known.error) or not known.reading,
        )

    def check(self, caller: Caller) -> None:
        """Raise GatewayError, as `call` does, for one whose calls would all be refused."""
        self._keys.find(caller.authorization)
        if self._draining:
            raise ending()

    @contextmanager
    def call(self, caller: Caller) -> Generator[Call]:
        """A request from its first look at the key to its line in the log. Raises GatewayError."""
        deadline = min(self._deadline_s, self._deadline_s if caller.timeout_s is None else caller.timeout_s)
        made = Call(request_id(caller.id), time.monotonic() + deadline, caller.session[:256])
        with recorded(made, self.figures), self._traced(made, caller):
            made.key = self._keys.find(caller.authorization)
            if self._draining:
                raise ending()
            yield made

    def named(self, call: Call, text: str) -> Places:
        """Where the model may be asked that a client names. The call is then one of this model.

        Raises GatewayError, code `model-unknown` or `release-not-loaded`; also for what the key may not ask.
        """
        name = self.known.model_of(Name.parse(text))
        if call.key is not None and not call.key.may_ask(name.model):
            raise unknown(text)
        places = self.known.places(name)
        if name.adapter:
            adapters = self.known.adapters(places, name.model)
            # Where nobody knows, the release itself refuses what it does not have.
            if adapters is not None and name.adapter not in adapters:
                there = f"its adapters are {', '.join(adapters)}" if adapters else "it has no adapters"
                raise unknown(text, f": {there}")
        call.name, call.canary = name, canary_of(self.known, places, name, call)
        return places

    def models(self, key: Key | None) -> list[str]:
        """The public names that a key may ask, aliases behind the others, each with its adapters."""
        known = self.known
        models = known.models if known.reading else {}
        found: list[str] = []
        for name, model in ({model: model for model in models} | known.aliases).items():
            if model in models and (key is None or key.may_ask(model)):
                adapters = known.adapters(models[model], model) or ()
                found += [name, *(f"{name}:{adapter}" for adapter in adapters)]
        return found

    async def contract(self, call: Call) -> Contract:
        """What the release takes and gives that answers to the call's name. Raises GatewayError and TritonError.

        Of a public name it is the public release's, also where a canary gets the request: it is asked what it takes.
        """
        return (await self._routing.chosen(call))[1]

    async def pin(self, call: Call) -> tuple[Contract, ModelParsers]:
        """Choose the release that the call's requests are made for: no other one answers them.

        They raise GatewayError, code `release-not-loaded`, once no node has it any more. Raises as `contract` does.
        """
        call.pinned = None
        if (canary := self._routing.canary_place(call, ())) is not None:
            try:
                contract = await self._routing.contract(canary, name_of(call).model)
                call.pinned = canary.release
                return contract, self.known.parsers(canary, name_of(call).model)
            except NodeFailed as failure:
                self._routing.failed(canary, failure, set())
                self._fall_back(call, "node-lost")
            except EnginehouseError as error:
                self._fall_back(call, error.code)
        place, contract = await self._routing.chosen(call)
        call.pinned = place.release
        return contract, self.known.parsers(place, name_of(call).model)

    def leave_canary(self, call: Call, error: EnginehouseError) -> bool:
        """Whether the call was pinned to a canary that failed, and is one of the public release from now on.

        What came of its answers is counted as the canary's. The caller knows that its client got nothing of them.
        """
        code = first_code(error)
        if call.canary is None or call.pinned != call.canary or not is_curable(code):
            return False
        name, release = name_of(call), str(call.canary)
        for answer in call.answers:
            self.figures.heard(name.model, release, answer, name.adapter)
        call.answers.clear()
        self._fall_back(call, code)
        return True

    def _fall_back(self, call: Call, outcome: str) -> None:
        name = name_of(call)
        self.figures.fell_back(name.model, str(call.canary), outcome, name.adapter)
        call.canary = call.pinned = None

    async def generate(self, call: Call, given: Mapping[str, Given]) -> AsyncGenerator[Values]:
        """The answers of the call's model to inputs by name, piece by piece.

        Bytes that are no text become surrogates (`surrogateescape`). A field that is no input becomes a
        parameter of the request, as Triton's generate extension has it.
        Raises GatewayError and TritonError, code `request-malformed` for a value that its input cannot have.
        """
        request = generate_request(await self.contract(call), given)
        async with aclosing(self.stream(call, request)) as responses:
            async for response in responses:
                if response.outputs:
                    yield values_of(response, "surrogateescape")

    async def stream(self, call: Call, request: InferRequest) -> AsyncGenerator[InferResponse]:
        """The responses of the call's model as they come, the last of which may have no outputs.

        Until the first one has come, the request goes to another node if its own dies. Leaving early cancels it.
        Raises GatewayError and TritonError, code `request-malformed` for tensors that the release does not have.
        """
        name, heard = asked_of(call), call.answer()
        try:
            with self._limits.request(call.key), self.figures.running.labels(name.model).track_inprogress():
                contract = await self.contract(call)
                if name.adapter:
                    choose_adapter(request, contract, name)
                contract.check(request)
                copied = self._shadows.chosen(self.known, call, name_of(call))
                async with aclosing(self._answered(call, name, request, heard)) as responses:
                    async for response in responses:
                        self._limits.spend(call.key, heard.note(response))
                        if copied is not None:
                            copied.heard.note(response)
                        yield response
                heard.ended()
                if copied is not None:
                    self._shadows.send(self.known, call, name_of(call), request, copied)
        finally:
            if not self._limits.running:
                self._idle.set()

    async def drain(self, grace_s: float) -> None:
        """Take no more requests, and give those that run so many seconds; then they end by an error."""
        self._draining = True
        await self._shadows.stop()
        self._idle.clear()
        if self._limits.running:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), grace_s)
        self._channels.cut()

    async def close(self) -> None:
        self._watch.stop()
        await self._shadows.stop()
        await self._channels.close()

    async def _answered(
        self, call: Call, name: Name, request: InferRequest, heard: Heard
    ) -> AsyncGenerator[InferResponse]:
        """Ask one node after the other until one has begun to answer."""
        own_id, request.id = request.id, request.id or call.id
        request.model_version = ""
        avoided: set[PlaceKey] = set()
        gone: set[PlaceKey] = set()
        begun, lost = False, 0
        for _ in range(MOST_TRIES):
            canary = None if call.pinned is not None else self._routing.canary_place(call, avoided)
            place = call.place = canary or await self._routing.place(call, avoided)
            call.origin = self.known.origin(place, name.model)
            heard.asked_at = heard.asked_at or time.monotonic()
            try:
                # A node that has moved on may not have said so yet, and cannot while the store is away.
                follows = name_of(call).release is None and place.key in gone
                contract = None if follows else await self._routing.contract(place, name.model)
                request.model_name = name.model if contract is None else contract.model
                cancels = contract is not None and contract.cancels
                if canary is not None and contract is not None:
                    contract.check(request)
                with self._routing.balance.running(place.node):
                    asked = self._channels.ask(place.node, request, call.until, cancels=cancels, metadata=call.trace)
                    async with aclosing(asked) as responses:
                        async for response in responses:
                            begun = True
                            response.model_name, response.id = str(name), own_id
                            yield response
                return
            except NodeFailed as failure:
                self._routing.failed(place, failure, avoided)
                if failure.absent:
                    gone.add(place.key)
                lost += failure.begun
                if begun or lost > _MOST_LOST:
                    raise GatewayError(
                        f"the node stopped answering: {failure}", code="node-lost", retryable=True
                    ) from failure
                if canary is not None:
                    self._fall_back(call, "node-lost")
            except EnginehouseError as error:
                if canary is None or begun or not is_curable(error.code):
                    raise
                self._fall_back(call, error.code)
        raise unanswered(name)
