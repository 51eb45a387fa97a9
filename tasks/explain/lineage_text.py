"""A lineage as a tree for people, as a Mermaid diagram, and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydantic import JsonValue

from tasks.explain.lineage import Entity, Lineage
from tasks.store.names import is_identity

_SHOWN = ("state", "made", "by", "run")


def document(found: Lineage) -> dict[str, JsonValue]:
    """The graph as `--format json` prints it."""
    return {
        "root": found.root,
        "things": [
            {"kind": entity.kind, "name": entity.name, "inputs": [*found.inputs[entity.name]], **entity.facts}
            for entity in found.entities.values()
        ],
    }


def tree(found: Lineage) -> Iterator[str]:
    """Lines: the root, what it was made from, and what uses it. The branches of an entity are printed once."""
    yield _line(found.entities[found.root])
    directions: list[tuple[str, Callable[[str], list[str]]]] = [
        ("made from", lambda name: found.inputs[name]),
        ("used by", found.outputs),
    ]
    for title, nearer in directions:
        branches = nearer(found.root)
        yield title if branches else f"{title}: nothing"
        yield from _branches(found, branches, nearer, "", {found.root})


def _branches(
    found: Lineage, names: list[str], nearer: Callable[[str], list[str]], indent: str, printed: set[str]
) -> Iterator[str]:
    for name in names:
        last = name == names[-1]
        yield f"{indent}{'└─' if last else '├─'} {_line(found.entities[name])}"
        if name not in printed:
            printed.add(name)
            yield from _branches(found, nearer(name), nearer, indent + ("   " if last else "│  "), printed)


def _line(entity: Entity) -> str:
    title = "public name" if entity.kind == "public" else entity.kind
    name = entity.name.removeprefix(f"{entity.kind}/")
    facts = "  ".join(entity.facts[key] for key in _SHOWN if key in entity.facts)
    return f"{title} {name}  {facts}".rstrip()


def mermaid(found: Lineage) -> str:
    """A flowchart from the source down to the public name, with the root drawn bold."""
    numbers = {name: f"n{number}" for number, name in enumerate(found.entities)}
    lines = ["graph TD"]
    for name, entity in found.entities.items():
        opening, closing = ("([", "])") if entity.kind == "public" else ("[", "]")
        lines.append(f"  {numbers[name]}{opening}{_label(entity)}{closing}")
    lines += [f"  {numbers[other]} --> {numbers[name]}" for name, inputs in found.inputs.items() for other in inputs]
    lines.append(f"  style {numbers[found.root]} stroke-width:3px")
    return "\n".join(lines) + "\n"


def _label(entity: Entity) -> str:
    parts = entity.name.split("/")
    # Twelve of an identity's 64 digits are enough to recognise it.
    named = " ".join([*parts[1:-1], parts[-1][:12]]) if is_identity(parts[-1]) else entity.name
    texts = ["public name" if entity.kind == "public" else entity.kind, named, entity.facts.get("state", "")]
    return '"' + "<br/>".join(text.replace('"', "#quot;") for text in texts if text) + '"'
