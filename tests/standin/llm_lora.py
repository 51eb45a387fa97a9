"""Adapters in the stand-in for the LLM API: how a request names one, and what the LLM makes of it.

Source: `executor/request.py`, `lora_helper.py` and `lora_manager.py` of TensorRT-LLM 1.0 to 1.3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODULES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_dense",
    "gate_proj": "mlp_h_to_4h",
    "down_proj": "mlp_4h_to_h",
    "up_proj": "mlp_gate",
}


@dataclass(slots=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""

    def __post_init__(self) -> None:
        if not Path(self.lora_path).exists():
            raise ValueError(f"lora_path ({self.lora_path}) does not exist.")


def check_lora_config(config: Mapping[str, Any]) -> None:
    # With one folder the modules are read there; of several, or none, they have to be named.
    if len(config.get("lora_dir", [])) != 1:
        assert config.get("lora_target_modules"), "Expecting at least one lora target module"


class Adapters:
    """Those that an LLM was asked for, by id."""

    def __init__(self, config: Mapping[str, Any] | None) -> None:
        self._config = config
        self._loaded: dict[int, tuple[str, bytes]] = {}

    def weights(self, request: LoRARequest | None) -> bytes | None:
        """The bytes of an adapter's weights. Raises ValueError for one that there is no room for."""
        if request is None:
            return None
        if self._config is None:
            raise ValueError("LoRA is not enabled: no lora_config was given")
        if request.lora_int_id not in self._loaded:
            self._loaded[request.lora_int_id] = request.lora_path, self._load(Path(request.lora_path), self._config)
        path, weights = self._loaded[request.lora_int_id]
        # The real one would answer with what it loaded under that id.
        assert path == request.lora_path, f"id {request.lora_int_id} is that of {path}"
        return weights

    def _load(self, folder: Path, config: Mapping[str, Any]) -> bytes:
        adapter = json.loads((folder / "adapter_config.json").read_text())
        # It reads neither of these, and would compute something else.
        assert not adapter.get("alpha_pattern") and not adapter.get("use_dora")
        file = (folder / "adapter_model.safetensors").read_bytes()
        length = int.from_bytes(file[:8], "little")
        for name, entry in json.loads(file[8 : 8 + length]).items():
            if name == "__metadata__":
                continue
            hf_module, matrix = name.split(".")[-3:-1]
            module = MODULES.get(hf_module)
            if module not in config["lora_target_modules"]:
                raise ValueError(f"lora module {module} of {name} not enabled for this model")
            rank = min(entry["shape"]) if matrix == "lora_A" else entry["shape"][1]
            if rank > config.get("max_lora_rank", 64):
                raise ValueError(f"Invalid low_rank ({rank}). low_rank must be smaller than mMaxLowRank")
        return file
