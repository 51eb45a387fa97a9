"""Words of the source for readers: a string as its expression writes it, with `«name»` for what is filled in."""

from __future__ import annotations

import ast
import inspect
from collections import deque
from collections.abc import Mapping
from itertools import pairwise

_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
_GENERAL = frozenset({"name", "value", "message", "path", "text", "code", "hint", "id"})
"""Attributes that say less than what they belong to: `target.name` is the target."""


def text_of(node: ast.expr | None, known: Mapping[str, str]) -> str:
    """The text that an expression makes, with what each name of `known` stands for. Empty if nothing is known of it.

    Of a choice (`a if b else c`) both texts are given, with `, or: ` between them.
    """
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_part(part, known) for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _both(text_of(left, known), text_of(right, known))
        case ast.IfExp(body=body, orelse=orelse):
            return ", or: ".join(dict.fromkeys(filter(None, (text_of(body, known), text_of(orelse, known)))))
        case ast.BoolOp(op=ast.Or(), values=values):
            return ", or: ".join(dict.fromkeys(filter(None, (text_of(value, known) for value in values))))
        case ast.Call(func=ast.Attribute(value=inner, attr="format")):
            return text_of(inner, known)
        case ast.Name(id=name):
            return known.get(name, "")
        case _:
            return ""


def assigned(body: list[ast.stmt], known: Mapping[str, str]) -> dict[str, str]:
    """What the names stand for that these statements give one text, and no second one."""
    texts = dict(known)
    seen: set[str] = set()
    for statement in body:
        for node in _own(statement):
            if not isinstance(node, ast.Assign):
                continue
            for target in node.targets:
                if not isinstance(target, ast.Name):
                    continue
                texts.pop(target.id, None)
                if target.id not in seen and (text := text_of(node.value, texts)):
                    texts[target.id] = text
                seen.add(target.id)
    return texts


def _own(statement: ast.stmt) -> list[ast.AST]:
    """The nodes of a statement without those of functions and classes inside it."""
    found: list[ast.AST] = []
    left: deque[ast.AST] = deque([statement])
    while left:
        node = left.popleft()
        if isinstance(node, _FUNCTION | ast.ClassDef):
            continue
        found.append(node)
        left.extend(ast.iter_child_nodes(node))
    return found


def _part(part: ast.expr, known: Mapping[str, str]) -> str:
    if not isinstance(part, ast.FormattedValue):
        return text_of(part, known)
    # A choice of texts inside a sentence is told best by the first of them.
    return text_of(part.value, known).partition(", or: ")[0] or f"«{_name(part.value)}»"


def _both(left: str, right: str) -> str:
    return f"{left}{right}" if left and right else left or right


def _name(node: ast.expr) -> str:
    """What a reader may call the value of an expression: the last word of it that says something."""
    match node:
        case ast.Attribute(value=inner, attr=attr):
            word = attr.strip("_")
            if (
                word not in _GENERAL
                or isinstance(inner, ast.Call)
                or (isinstance(inner, ast.Name) and inner.id == "self")
            ):
                return word
            return _name(inner)
        case ast.Name(id=name):
            return name.strip("_").lower()
        case ast.Subscript(value=inner):
            return _name(inner)
        case _:
            return "…"


def below_fields(of: type) -> dict[str, str]:
    """The string below each field of a class, in one line."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(of)).body if isinstance(node, ast.ClassDef))
    texts: dict[str, str] = {}
    for field, below in pairwise(body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
            case _:
                pass
    return texts
