"""An adapter as llama.cpp loads it beside a model: a GGUF with two matrices for each matrix of the model.

Source: `src/llama-adapter.cpp` of llama.cpp.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from tasks.gguf.reader import read_gguf
from tasks.lora.gguf_names import for_gguf
from tasks.lora.requested import read_requested, scaled


def write_gguf_adapter(model: Path, adapter: Path, output: Path) -> None:
    """Write the adapter of the snapshot `adapter` as the file `output`, for the GGUF `model`.

    Only the header of `model` is read. Raises StepFailed `adapter-unfit` if llama.cpp cannot add it to that model.
    """
    file = read_gguf(model)
    wanted, tensors = for_gguf(read_requested(adapter), file)
    writer = GGUFWriter(output, file.text("general.architecture") or "")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    # llama.cpp has one for all modules, and takes 0 for none. Each module's own scale is in its second matrix.
    writer.add_float32("adapter.lora.alpha", 0.0)
    for name, low_rank in wanted.added.items():
        own = tensors[name].name
        writer.add_tensor(f"{own}.lora_a", np.ascontiguousarray(low_rank.a.astype(np.float32)))
        writer.add_tensor(f"{own}.lora_b", np.ascontiguousarray(scaled(low_rank)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
