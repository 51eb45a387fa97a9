"""The command line that exports a checkpoint, by its form.

Megatron-Bridge has a worker for it in its checkout, `scripts/conversion/run_conversion.py`. On the CPU it takes the
configuration of the checkpoint itself (`run_config.yaml`), and of `--hf-model` the configuration and the tokenizer, no
weights. NeMo 2 has `nemo.collections.llm.export_ckpt`, and its checkpoint holds all of it. Sources:
`scripts/conversion/arguments.py` and `cpu_backend.py` of Megatron-Bridge 0.6, `nemo/collections/llm/api.py` of NeMo 2.
"""

from __future__ import annotations

from pathlib import Path

from infra.errors import SettingsError
from infra.settings import Settings
from tasks.models.source import Source

NEMO2_PROGRAM = Path(__file__).with_name("nemo2_to_hf.py")
_WORKER = Path("scripts/conversion/run_conversion.py")


def command(config: Settings, source: Source, checkpoint: Path, like: Path | None, output: Path) -> tuple[str, ...]:
    """The command that writes `checkpoint` to `output`, which does not exist yet. `like` is a folder; None for NeMo 2.

    Raises SettingsError if this machine has no such tool.
    """
    if not config.exporter:
        raise SettingsError(
            f"{source.uri} is a checkpoint of form {source.form}, and this worker has no {source.exporter}",
            hint="ENGINEHOUSE_EXPORTER=/path/python3 names the interpreter that has it",
            code="tool-missing",
        )
    if source.form == "nemo2":
        return (config.exporter, str(NEMO2_PROGRAM), str(checkpoint), str(output))
    worker = Path(config.exporter_checkout) / _WORKER
    if not config.exporter_checkout or not worker.is_file():
        raise SettingsError(
            f"there is no {_WORKER} in {config.exporter_checkout or 'a checkout of Megatron-Bridge'}",
            hint="ENGINEHOUSE_EXPORTER_CHECKOUT=/opt/Megatron-Bridge names the checkout of its version",
            code="tool-missing",
        )
    return (
        *(config.exporter, str(worker), "export", "--device", "cpu", "--no-progress"),
        *("--hf-model", str(like), "--megatron-path", str(checkpoint), "--hf-path", str(output)),
    )
