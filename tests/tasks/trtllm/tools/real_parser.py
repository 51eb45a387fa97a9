"""Runs the argument parser of a script of TensorRT-LLM, and nothing else: `python real_parser.py CHECKOUT SCRIPT`.

Each line of standard input is a JSON list of arguments. The answer to each is a line of JSON: `null` if the script's
own parser took them, else its error. A line `"options"` is answered with the options that the parser has.

The script runs as it would from the shell, up to the place where it parses: what it imports and this machine lacks,
`tensorrt_llm` and `torch` first of all, is a dummy. Constants and enumerations that a parser takes its choices from are
read from the checkout. A parser takes no beginnings of options here: what a command says, an option must be called.
"""

from __future__ import annotations

import argparse
import ast
import enum
import importlib.abc
import importlib.machinery
import json
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

_REAL = {"argparse", "enum", "json", "typing", *sys.stdlib_module_names}


class Dummy:
    """Takes every use that a module makes of what it imports."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Dummy()

    def __call__(self, *_: object, **__: object) -> Dummy:
        return Dummy()

    def __getitem__(self, _: object) -> Dummy:
        return Dummy()

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __or__(self, _: object) -> Dummy:
        return Dummy()

    __ror__ = __or__

    def __mro_entries__(self, _: object) -> tuple[type, ...]:
        return (object,)


class DummyModule(ModuleType):
    """A module without its code: constants and enumerations of the checkout's own file, and dummies for the rest."""

    def __init__(self, name: str, file: Path | None) -> None:
        super().__init__(name)
        self.__path__ = []
        self.__all__: list[str] = []
        if file is not None:
            for known, value in _constants(file):
                setattr(self, known, value)

    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            return "0"
        if name.startswith("__"):
            raise AttributeError(name)
        return Dummy()


def _constants(file: Path) -> Iterator[tuple[str, object]]:
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            with suppress(ValueError):
                yield node.targets[0].id, ast.literal_eval(node.value)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Enum") for base in node.bases):
            scope: dict[str, Any] = {**vars(enum), "enum": enum, "StrEnum": enum.StrEnum}
            with suppress(Exception):
                exec(compile(ast.Module([node], []), str(file), "exec"), scope)
                yield node.name, scope[node.name]


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, checkout: Path, script: Path) -> None:
        self.roots = (checkout, script.parent, checkout / "examples")

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in _REAL:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return DummyModule(spec.name, self._file(spec.name))

    def exec_module(self, module: ModuleType) -> None: ...

    def _file(self, name: str) -> Path | None:
        for root in self.roots:
            below = root.joinpath(*name.split("."))
            for file in (below.with_suffix(".py"), below / "__init__.py"):
                if file.is_file():
                    return file
        return None


class Refused(Exception): ...


class Found(BaseException):
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def _stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
    raise Found(parser)


def _refuse(_: argparse.ArgumentParser, message: str) -> NoReturn:
    raise Refused(message)


def parser_of(checkout: Path, script: Path) -> argparse.ArgumentParser:
    """The parser that `script` makes when it is started."""
    sys.meta_path.insert(0, Finder(checkout, script))
    sys.path.insert(0, str(script.parent))
    sys.argv = [script.name]
    kept = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args
    argparse.ArgumentParser.parse_args = _stop  # type: ignore[method-assign]
    argparse.ArgumentParser.parse_known_args = _stop  # type: ignore[method-assign]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except Found as found:
        argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args = kept  # type: ignore[method-assign]
        parser = found.parser
        parser.allow_abbrev = False
        return parser
    raise SystemExit(f"{script} parses no arguments")


def refusal(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> str | None:
    try:
        parser.parse_args(list(arguments))
    except Refused as refused:
        return str(refused)
    return None


def options(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Each option by its first long name: its other names, type, default, choices, and whether it is a switch."""
    found: dict[str, Any] = {}
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
        names = [name for name in action.option_strings if name not in ("-h", "--help")]
        if not names:
            continue
        long = next((name for name in names if name.startswith("--")), names[0])
        row: dict[str, Any] = {}
        if others := [name for name in names if name != long]:
            row["aliases"] = others
        if action.nargs == 0:
            row["switch"] = True
            if isinstance(action, argparse._StoreFalseAction):  # pyright: ignore[reportPrivateUsage]
                row["action"] = "store_false"
        else:
            kind = getattr(action.type, "__name__", "str") if action.type is not None else "str"
            row |= {"type": kind} if kind in ("int", "float") else {}
            row |= {"choices": [_text(choice) for choice in action.choices]} if action.choices is not None else {}
            row |= {"default": action.default} if isinstance(action.default, str | int | float) else {}
            row |= {"nargs": action.nargs} if action.nargs is not None else {}
            row |= {"const": action.const} if isinstance(action.const, str) else {}
        if action.required:
            row["required"] = True
        if action.dest != long.lstrip("-").replace("-", "_"):
            row["dest"] = action.dest
        found[long] = row
    return found


def _text(value: object) -> str:
    return str(value.value) if isinstance(value, enum.Enum) else str(value)


def main() -> None:
    checkout, script = map(Path, sys.argv[1:3])
    parser = parser_of(checkout, script)
    argparse.ArgumentParser.error = _refuse  # type: ignore[method-assign]
    answer: Callable[[object], None] = lambda value: print(json.dumps(value), flush=True)  # noqa: E731
    for line in sys.stdin:
        asked = json.loads(line)
        answer(options(parser) if asked == "options" else refusal(parser, asked))


if __name__ == "__main__":
    main()
