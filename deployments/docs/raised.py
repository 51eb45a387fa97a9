"""Every error code of the source, with what is said and what helps, as the places say that raise it.

The source is read, not run: an error's words are there as an expression, and no place has to be reached.
Each place has one of these forms:

- `SomeError("…", code="a-code", hint="…")`, or without `code`, which is that of the class;
- a function or class that takes the code as the argument `code`, and is called with it;
- a row of a table (`_ROWS`);
- an expression that `_DERIVED` knows.

Anything else is an error here, so that no code is missed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import get_args, get_type_hints

from deployments.docs.texts import assigned, text_of
from deployments.gateway.openai.errors import Code
from infra import errors
from infra.errors import EnginehouseError
from infra.settings import CHECKOUT
from tasks.models.rollout import Closed
from tasks.serving.failures import FailureCode
from tasks.targets.approval import ApprovalState

ROOMS = ("deployments", "flows", "infra", "tasks")
FINDING = "Finding"
"""What the doctor says of a set-up: it has a code, and is not raised."""

CLASSES: dict[str, type[EnginehouseError]] = {
    name: found
    for name, found in vars(errors).items()
    if isinstance(found, type) and issubclass(found, EnginehouseError)
}

_ROWS = {
    "Failure": ("StepFailed", 0, 2, 3),
    "_Refusal": ("StoreError", 0, None, 1),
    "wrong": (FINDING, 0, 1, 2),
    "notice": (FINDING, 0, 1, 2),
}
"""Calls that are rows of a table: the class of the error, and which arguments are code, message and hint."""

_PASSED_ON = frozenset({"code", "error.code", "failure.code", "refusal.code", "found[2]"})
"""Codes that come from another place that is read."""

_TAKES_CODE = re.compile(r"\bcode: ")

_DERIVED: dict[str, tuple[str, ...]] = {
    "closed.code": get_args(get_type_hints(Closed)["code"]),
    "f'approval-{decision.state}'": tuple(
        f"approval-{state}" for state in get_args(ApprovalState) if state != "approved"
    ),
    "f'generation-{failure}'": tuple(f"generation-{failure}" for failure in get_args(FailureCode)),
    "f'{what}-unfit'": ("checkpoint-unfit", "engine-unfit"),
    "_OF_FAILURE[error.failure]": get_args(Code),
    "_CODES.get(error.code, 'internal')": get_args(Code),
    "interruption": ("step-cancelled", "step-timeout"),
    "_CODES[code]": ("triton-refused", "context-length", "model-busy", "deadline", "model-cancelled", "model-failed"),
}


@dataclass(frozen=True, order=True)
class Raised:
    """One place: `says` and `remedy` are empty where the source has no words of its own there."""

    code: str
    error: str
    says: str
    remedy: str
    path: str


@dataclass(frozen=True)
class _Passes:
    """A function that raises an error with the code that it is given."""

    parameters: tuple[str, ...]
    error: str
    says: ast.expr | None
    hint: ast.expr | None
    known: Mapping[str, str]


@cache
def raised() -> tuple[Raised, ...]:
    """All places, sorted. Raises ValueError for an expression of a code that is not understood."""
    texts = {
        str(path.relative_to(CHECKOUT)): path.read_text()
        for room in ROOMS
        for path in sorted((CHECKOUT / room).rglob("*.py"))
    }
    trees = {path: ast.parse(text) for path, text in texts.items() if _TAKES_CODE.search(text)}
    passing: dict[str, _Passes] = {}
    for tree in trees.values():
        passing |= _passing(tree)
    raises = re.compile(rf"\b(?:{'|'.join((*CLASSES, *_ROWS, *passing))})\(")
    found: set[Raised] = set()
    for path, text in texts.items():
        if raises.search(text):
            found.update(_in_module(path, trees.get(path) or ast.parse(text), passing))
    return tuple(sorted(found))


def _passing(tree: ast.Module) -> dict[str, _Passes]:
    """The functions, and the classes by their `__init__`, that take the code of what they raise."""
    found: dict[str, _Passes] = {}
    for name, function in _functions(tree):
        parameters = tuple(each.arg for each in (*function.args.posonlyargs, *function.args.args) if each.arg != "self")
        if "code" not in parameters and "code" not in {each.arg for each in function.args.kwonlyargs}:
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and _keyword(node, "code", "Name"):
                error = _called(node)
                known = assigned(function.body, assigned(tree.body, {}))
                found[name] = _Passes(parameters, error, node.args[0] if node.args else None, _hint(node), known)
    return {name: each for name, each in found.items() if name not in CLASSES}


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "__init__":
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and any(
            isinstance(base, ast.Name) and base.id in CLASSES for base in node.bases
        ):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
                    yield node.name, inner


def _in_module(path: str, tree: ast.Module, passing: Mapping[str, _Passes]) -> Iterator[Raised]:
    texts = assigned(tree.body, {})
    todo: list[tuple[ast.AST, Mapping[str, str]]] = [(tree, texts)]
    while todo:
        node, known = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            known = assigned(node.body, known)
        elif isinstance(node, ast.Call):
            yield from _in_call(path, node, known, passing)
        todo.extend((child, known) for child in ast.iter_child_nodes(node))


def _in_call(path: str, call: ast.Call, known: Mapping[str, str], passing: Mapping[str, _Passes]) -> Iterator[Raised]:
    name = _called(call)
    if name in CLASSES and (call.args or call.keywords):
        says = text_of(call.args[0] if call.args else None, known)
        for code in _codes(path, _argument(call, "code", None), known, CLASSES[name].code):
            yield Raised(code, name, says, text_of(_hint(call), known), path)
    elif name in _ROWS:
        error, code_at, says_at, hint_at = _ROWS[name]
        says = "" if says_at is None else text_of(_at(call, says_at), known).replace("{0}", "«what it said»")
        for code in _codes(path, _at(call, code_at), known, ""):
            yield Raised(code, error, says, text_of(_at(call, hint_at), known), path)
    elif name in passing:
        passes = passing[name]
        place = passes.parameters.index("code") if "code" in passes.parameters else None
        given = {each: text_of(_argument(call, each, at), known) for at, each in enumerate(passes.parameters)}
        inner = {**passes.known, **{each: text for each, text in given.items() if text}}
        error = passes.error if passes.error in CLASSES else "EnginehouseError"
        if (expression := _argument(call, "code", place)) is not None:
            codes = _codes(path, expression, known, "")
            for code in codes:
                # One place for many codes has no words that fit each of them.
                says, remedy = (passes.says, passes.hint) if len(codes) == 1 else (None, None)
                yield Raised(code, error, text_of(says, inner), text_of(remedy, inner), path)


def _codes(path: str, expression: ast.expr | None, known: Mapping[str, str], default: str) -> tuple[str, ...]:
    match expression:
        case None | ast.Constant(value=None):
            return (default,)
        case ast.Constant(value=str(code)):
            return (code,)
        case ast.IfExp(body=body, orelse=orelse):
            return (*_codes(path, body, known, default), *_codes(path, orelse, known, default))
        case _:
            written = ast.unparse(expression)
    if written in _DERIVED:
        return _DERIVED[written]
    if isinstance(expression, ast.Name) and expression.id in known:
        return (known[expression.id],)
    if written in _PASSED_ON:
        return ()
    raise ValueError(f"{path}: the code {written} is not understood: deployments/docs/raised.py")


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _hint(call: ast.Call) -> ast.expr | None:
    return _argument(call, "hint", None)


def _argument(call: ast.Call, name: str, at: int | None) -> ast.expr | None:
    given = next((each.value for each in call.keywords if each.arg == name), None)
    return given if given is not None or at is None else _at(call, at)


def _at(call: ast.Call, at: int) -> ast.expr | None:
    return call.args[at] if at < len(call.args) else None


def _keyword(call: ast.Call, name: str, kind: str) -> bool:
    return any(each.arg == name and type(each.value).__name__ == kind for each in call.keywords)
