"""What Triton loads for the kind of `kind.py`: every request gets the engine's text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton  # pyright: ignore[reportMissingImports]

_triton: Any = triton


class TritonPythonModel:
    """Triton's interface to a decoupled Python model."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._outputs = config["output"]
        engine = Path(config["parameters"]["gpt_model_path"]["string_value"])
        self._text = (engine / "phrase.txt").read_text()

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            tensors = [self._tensor(output) for output in self._outputs]
            sender = request.get_response_sender()
            sender.send(_triton.InferenceResponse(tensors), flags=_triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _tensor(self, output: dict[str, Any]) -> Any:
        if output["name"] == "text_output":
            return _triton.Tensor("text_output", np.array([[self._text.encode()]], dtype=object))
        shape = [1, *(max(1, int(size)) for size in output["dims"])]
        return _triton.Tensor(output["name"], np.zeros(shape, _triton.triton_string_to_numpy(output["data_type"])))
