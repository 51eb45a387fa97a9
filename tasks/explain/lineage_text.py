"""A lineage as a tree for people, as a Mermaid diagram, and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydantic import JsonValue

from tasks.explain.lineage import Entity, Lineage

_SHOWN = ("state", "made", "by", "run")


def document(found: Lineage) -> dict[str, JsonValue]:
    """The graph as `--format json` prints it."""
    return {
        "root": found.root,
        "things": [
            {"kind": thing.kind, "name": thing.name, "inputs": [*found.inputs[thing.name]], **thing.facts}
            for thing in found.things.values()
        ],
    }


def tree(found: Lineage) -> Iterator[str]:
    """Lines: the thing itself, what it was made from, what uses it. What occurs twice is told once."""
    yield _line(found.things[found.root])
    directions: list[tuple[str, Callable[[str], list[str]]]] = [
        ("made from", lambda name: found.inputs[name]),
        ("used by", found.outputs),
    ]
    for title, nearer in directions:
        branches = nearer(found.root)
        yield title if branches else f"{title}: nothing"
        yield from _branches(found, branches, nearer, "", {found.root})


def _branches(
    found: Lineage, names: list[str], nearer: Callable[[str], list[str]], indent: str, told: set[str]
) -> Iterator[str]:
    for name in names:
        last = name == names[-1]
        yield f"{indent}{'└─' if last else '├─'} {_line(found.things[name])}"
        if name not in told:
            told.add(name)
            yield from _branches(found, nearer(name), nearer, indent + ("   " if last else "│  "), told)


def _line(thing: Entity) -> str:
    title = "public name" if thing.kind == "public" else thing.kind
    name = thing.name.removeprefix(f"{thing.kind}/")
    facts = "  ".join(thing.facts[key] for key in _SHOWN if key in thing.facts)
    return f"{title} {name}  {facts}".rstrip()


def mermaid(found: Lineage) -> str:
    """A flowchart from the source down to the public name; the thing asked for is drawn bold."""
    numbers = {name: f"n{number}" for number, name in enumerate(found.things)}
    lines = ["graph TD"]
    for name, thing in found.things.items():
        opening, closing = ("([", "])") if thing.kind == "public" else ("[", "]")
        lines.append(f"  {numbers[name]}{opening}{_label(thing)}{closing}")
    lines += [f"  {numbers[other]} --> {numbers[name]}" for name, inputs in found.inputs.items() for other in inputs]
    lines.append(f"  style {numbers[found.root]} stroke-width:3px")
    return "\n".join(lines) + "\n"


def _label(thing: Entity) -> str:
    parts = thing.name.split("/")
    # An identity of 64 digits is told apart by its first twelve.
    named = f"{parts[1]} {parts[2][:12]}" if len(parts) == 3 and len(parts[2]) == 64 else thing.name
    texts = ["public name" if thing.kind == "public" else thing.kind, named, thing.facts.get("state", "")]
    return '"' + "<br/>".join(text.replace('"', "#quot;") for text in texts if text) + '"'
