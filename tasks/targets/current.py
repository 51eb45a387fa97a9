"""The wanted state of one model on a target: which release is public, and which ones its nodes are to load.

targets/TARGET/MODEL/current.json    moved with `If-Match`
"""

from __future__ import annotations

from tasks.store.record import Record


class Current(Record):
    """The wanted state of one model: nodes load `public`, `previous` and `candidates`, nothing else.

    Where `alone`, memory does not hold two releases, and nodes hold one: the newest candidate, else the public one.
    While a candidate is loaded and tested, the public name then answers nobody.
    """

    public: int | None = None
    previous: int | None = None
    candidates: tuple[int, ...] = ()
    alone: bool = False

    @property
    def loaded(self) -> tuple[int, ...]:
        """Releases to hold, the one that matters most first, each once."""
        if self.alone and self.candidates:
            return (max(self.candidates),)
        wanted = [self.public] if self.alone else [self.public, self.previous, *self.candidates]
        return tuple(dict.fromkeys(n for n in wanted if n is not None))

    def with_candidate(self, release: int, *, alone: bool = False) -> Current:
        candidates = self.candidates if release in self.candidates else (*self.candidates, release)
        return self.model_copy(update={"candidates": candidates, "alone": alone})

    def without_candidate(self, release: int) -> Current:
        return self.model_copy(update={"candidates": tuple(n for n in self.candidates if n != release)})

    def promoted(self, release: int) -> Current:
        if release == self.public:
            return self.without_candidate(release)
        moved = self.model_copy(update={"public": release, "previous": self.public})
        return moved.without_candidate(release)
