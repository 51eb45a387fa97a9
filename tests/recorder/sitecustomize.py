"""Records every S3 call of every Python process that has this folder in PYTHONPATH.

It appends one JSON document a line to the file S3_CALLS: the flow or module that the process runs, the operation, and
its key or prefix.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_CLIENT = "botocore.client"


def _note(operation: str, parameters: dict[str, Any]) -> None:
    who = os.environ.get("PREFECT__FLOW_NAME") or " ".join(sys.orig_argv[2:5])
    line = {"who": who, "operation": operation, "key": parameters.get("Key", parameters.get("Prefix", ""))}
    with open(os.environ["S3_CALLS"], "a") as file:  # noqa: PTH123  (before anything of a process is imported)
        file.write(json.dumps(line) + "\n")


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        original = module.BaseClient._make_api_call

        def make(self: Any, operation_name: str, api_params: dict[str, Any]) -> Any:
            _note(operation_name, api_params)
            return original(self, operation_name, api_params)

        module.BaseClient._make_api_call = make


class _Finder(importlib.abc.MetaPathFinder):
    """Changes botocore when it is imported, and not before: it is large, and most processes never need it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _CLIENT:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None and spec.loader is not None
        spec.loader = _Loader(spec.loader)
        return spec


if "S3_CALLS" in os.environ:
    sys.meta_path.insert(0, _Finder())
