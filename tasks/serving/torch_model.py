"""A checkpoint in PyTorch, loaded by transformers: tokens in, the scores of the next one out.

All is asked from one thread. A plain pass computes one request, as if there were no other, and its numbers depend on no
batch. A shared pass computes the next token of several at once, for those that ask for it.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .engine import EngineFailed
from .settings import ADAPTER_FOLDER, ServingSettings

if TYPE_CHECKING:
    from .shared_pass import SharedPass

Logits = npt.NDArray[np.float32]
"""Of the whole vocabulary, for the token after one: [vocabulary]; or for several places: [places, vocabulary]."""

SCORED_AT_ONCE = 32
"""Places of a text whose scores of the whole vocabulary are held at once."""

_ROUNDING = 1e-4
_ROUNDING_OF_HALVES = 0.05
"""How far scores of a shared pass may be from those of a plain one, as a part of the largest: sums in another order
differ by some 1e-6 in 32 bits, and by some 0.01 in 16."""

_WITHOUT_ADAPTER = "__base__"
"""What PEFT calls it."""


@dataclass(frozen=True)
class Sequenced:
    """What a request has in its room, the keys and values of its tokens so far, and the adapter that it chose."""

    cache: Any
    adapter: str | None


class TorchModel:
    """The checkpoint in `checkpoint`; `folder` has the adapters of the release.

    Raises EngineFailed where it cannot be loaded, or the device has not the memory that the release was planned with.
    """

    def __init__(self, folder: Path, settings: ServingSettings, checkpoint: Path) -> None:
        self._torch: Any = _imported("torch")
        self._transformers: Any = _imported("transformers")
        self.device = settings.device
        if self.device == "cpu":
            self._torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
        self._require_memory(settings)
        self._model = self._loaded(checkpoint, settings)
        self.config = self._model.config
        known = inspect.signature(self._model.forward).parameters
        # Prompts of thousands of tokens would have the scores of a whole vocabulary each.
        self._keeps = "logits_to_keep" in known
        # transformers 5.24 has another name for it than 5.17.
        self._cache_name = "cache" if "cache" in known else "past_key_values"
        own = self._model
        self._add_adapters(folder, settings)
        # After transformers was found, which this imports.
        from .reserved_cache import cache_in, growing_cache, make_room
        from .shared_pass import SharedPass

        self._cache_in = cache_in
        with self._torch.inference_mode(), self._fitting(settings):
            used = growing_cache(self.config)
            self._pass([0], used, None, 1)
            self.rooms = [make_room(used, settings.context_tokens) for _ in range(settings.slots)]
            del used
            if self.device == "cuda":
                # The longest prompt there can be, so that what it takes beside weights and cache is taken as well.
                whole = [0] * settings.most_prompt_tokens
                self._pass(whole, cache_in(self.rooms[0], self.config), None, min(SCORED_AT_ONCE, len(whole)))
        self.exact = str(own.dtype) == "torch.float32"
        """Whether the likeliest token of a shared pass is that of a plain one: ties are common in 16 bits alone."""
        self._shared_pass: SharedPass | None = None
        if len(self.rooms) > 1 and SharedPass.fits(own, self.rooms[0]):
            self._prove_shared_passes(SharedPass(own))
        if self.device == "cuda":
            self._keep_within(settings)

    def begin(self, room: Any, adapter: str | None) -> Sequenced:
        """A new request in this room."""
        return Sequenced(self._cache_in(room, self.config), adapter)

    def read(self, sequenced: Sequenced, ids: Sequence[int], places: int = 1) -> Logits:
        """Read more tokens: the scores for what comes after each of the last `places` of them, `[places, vocabulary]`.

        Raises EngineFailed where the device's memory does not suffice for this request.
        """
        with self._torch.inference_mode():
            try:
                return self._pass(ids, sequenced.cache, sequenced.adapter, places)
            except self._torch.OutOfMemoryError as error:
                # Others go on: what this request had taken is free again.
                message = f"the memory of the GPU does not suffice for this request: {_first_line(error)}"
            except RuntimeError as error:
                message = f"PyTorch failed: {_first_line(error)}"
        if self.device == "cuda":
            self._torch.cuda.empty_cache()
        raise EngineFailed(message)

    @property
    def shares(self) -> bool:
        """Whether several requests can be read in one pass. If not, `read_together` reads them one by one."""
        return self._shared_pass is not None

    def read_together(self, requests: Sequence[tuple[Sequenced, int]]) -> list[Logits | EngineFailed]:
        """Read one more token of each request, none of which chose an adapter: the scores for what comes after it.

        What fails, fails alone.
        """
        found = list[Logits | EngineFailed]()
        for begin in range(0, len(requests), SCORED_AT_ONCE):
            found += self._read_some(requests[begin : begin + SCORED_AT_ONCE])
        return found

    def _read_some(self, requests: Sequence[tuple[Sequenced, int]]) -> list[Logits | EngineFailed]:
        if self._shared_pass is not None and len(requests) > 1:
            before = [sequenced.cache.get_seq_length() for sequenced, _ in requests]
            try:
                return list(self._shared(self._shared_pass, requests))
            except RuntimeError as error:
                print(f"read one by one: {_first_line(error)}", file=sys.stderr, flush=True)
            for (sequenced, _), tokens in zip(requests, before, strict=True):
                for layer in sequenced.cache.layers:
                    layer.cut(tokens)
        return [self._read_or_failed(sequenced, token_id) for sequenced, token_id in requests]

    def _read_or_failed(self, sequenced: Sequenced, token_id: int) -> Logits | EngineFailed:
        try:
            return self.read(sequenced, [token_id])[-1]
        except EngineFailed as error:
            return error

    def _shared(self, shared_pass: SharedPass, requests: Sequence[tuple[Sequenced, int]]) -> Logits:
        caches = [sequenced.cache for sequenced, _ in requests]
        positions = [[cache.get_seq_length()] for cache in caches]
        with self._torch.inference_mode(), shared_pass.attending():
            ids = [[token_id] for _, token_id in requests]
            places = self._torch.tensor(positions, device=self.device)
            return self._scores(ids, shared_pass.cache(caches), [None] * len(ids), 1, position_ids=places)[:, 0]

    def _prove_shared_passes(self, shared_pass: SharedPass) -> None:
        """Take shared passes where one says what plain passes say: some classes compute otherwise than most."""

        def begun() -> list[tuple[Sequenced, int]]:
            requests = [(self.begin(room, None), 0) for room in self.rooms[:2]]
            for (sequenced, _), ids in zip(requests, ([0], [1, 0, 1, 1]), strict=True):
                self.read(sequenced, ids)
            return requests

        try:
            plain = np.stack([self.read(sequenced, [token_id])[-1] for sequenced, token_id in begun()])
            off = np.abs(self._shared(shared_pass, begun()) - plain).max() / np.abs(plain).max()
        except Exception as error:
            why = _first_line(error)
        else:
            if off <= (_ROUNDING if self.exact else _ROUNDING_OF_HALVES):
                self._shared_pass = shared_pass
                return
            why = f"scores of a shared pass are off by {off:.1e} of the largest"
        print(f"requests of this model take turns: {why}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Free the model."""
        self.rooms = []
        del self._model
        gc.collect()
        if self.device == "cuda":
            self._torch.cuda.empty_cache()

    def _pass(self, ids: Sequence[int], cache: Any, adapter: str | None, places: int) -> Logits:
        return self._scores([list(ids)], cache, [adapter], places)[0]

    def _scores(
        self, ids: list[list[int]], cache: Any, adapters: Sequence[str | None], places: int, **asked: Any
    ) -> Logits:
        """Of the last `places` tokens of each request, `[requests, places, vocabulary]`."""
        asked |= {self._cache_name: cache, "use_cache": True}
        if self._keeps:
            asked["logits_to_keep"] = places
        if self._adapted:
            asked["adapter_names"] = [adapter or _WITHOUT_ADAPTER for adapter in adapters]
        output = self._model(input_ids=self._torch.tensor(ids, device=self.device), **asked)
        return output.logits[:, -places:].float().cpu().numpy()

    def _loaded(self, checkpoint: Path, settings: ServingSettings) -> Any:
        self._transformers.utils.logging.disable_progress_bar()
        wanted = "auto" if settings.dtype == "auto" else getattr(self._torch, settings.dtype)
        try:
            model, report = self._transformers.AutoModelForCausalLM.from_pretrained(
                str(checkpoint),
                dtype=wanted,
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
        except Exception as error:
            raise EngineFailed(f"transformers cannot load {checkpoint}: {_first_line(error)}") from error
        # transformers fills them with random numbers, and says so in a log.
        for problem in ("missing_keys", "mismatched_keys"):
            if found := sorted(map(str, report.get(problem) or ())):
                some = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
                raise EngineFailed(f"the checkpoint does not have all weights of its model ({problem}): {some}")
        with self._fitting(settings):
            return model.eval().requires_grad_(False).to(self.device)

    def _add_adapters(self, folder: Path, settings: ServingSettings) -> None:
        self._adapted = bool(settings.adapters)
        if not settings.adapters:
            return
        peft: Any = _imported("peft")
        first, *others = settings.adapters
        place = folder / ADAPTER_FOLDER
        try:
            self._model = peft.PeftModel.from_pretrained(self._model, str(place / first), adapter_name=first)
            for name in others:
                self._model.load_adapter(str(place / name), adapter_name=name)
        except Exception as error:
            raise EngineFailed(f"PEFT cannot load an adapter: {_first_line(error)}") from error
        self._model.eval()

    def _require_memory(self, settings: ServingSettings) -> None:
        if self.device != "cuda":
            return
        if not self._torch.cuda.is_available():
            raise EngineFailed("this release runs on a GPU, and PyTorch finds none on this machine")
        free, _ = self._torch.cuda.mem_get_info()
        if settings.planned_bytes is not None and free < settings.planned_bytes:
            raise EngineFailed(
                f"the GPU has {free >> 20} MiB free, and this release takes {settings.planned_bytes >> 20} MiB"
            )

    @contextmanager
    def _fitting(self, settings: ServingSettings) -> Generator[None]:
        """A part of loading that takes memory. Raises EngineFailed where there is not as much."""
        try:
            yield
        except (self._torch.OutOfMemoryError, MemoryError) as error:
            planned = settings.planned_bytes
            said = "" if planned is None else f", planned with {planned >> 20} MiB,"
            raise EngineFailed(f"this release{said} does not fit into memory: {_first_line(error)}") from error

    def _keep_within(self, settings: ServingSettings) -> None:
        """Let PyTorch take no more than it has: what a request took beyond would be missing for a neighbour."""
        cuda = self._torch.cuda
        reserved, (_, total) = cuda.memory_reserved(), cuda.mem_get_info()
        planned = settings.planned_bytes or 0
        if planned and reserved > planned:
            said = f"this release has taken {reserved >> 20} MiB of the GPU, and was planned with {planned >> 20} MiB"
            print(said, file=sys.stderr, flush=True)
        cuda.set_per_process_memory_fraction(min(1.0, max(planned, reserved) / total))


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EngineFailed(
            f"kind transformers needs the package {name} where Triton runs: pip install 'enginehouse[transformers]'"
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:500]
