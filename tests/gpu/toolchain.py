"""A toolchain for part 5: real PyTorch, transformers and ModelOpt, beside a TensorRT-LLM that is a name alone.

The worker refuses a toolchain without TensorRT-LLM, whose wheels no machine of ours can have. ModelOpt's step runs
nothing of it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from packaging.version import Version

from tasks.trtllm.releases import release_of

TENSORRT_LLM = "1.2.1"


def make(folder: Path, python: str) -> str:
    """An environment at `folder` over the packages of `python`; the setting ENGINEHOUSE_TOOLCHAIN that chooses it."""
    known = release_of(Version(TENSORRT_LLM))
    assert known is not None
    subprocess.run([python, "-m", "venv", "--without-pip", "--symlinks", "--clear", str(folder)], check=True)
    asked = "import json, sys; print(json.dumps([path for path in sys.path if path.endswith('-packages')]))"
    below: list[str] = json.loads(subprocess.run([python, "-c", asked], check=True, capture_output=True).stdout)
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "below.pth").write_text("\n".join(below) + "\n")
    for name, version in (("tensorrt_llm", TENSORRT_LLM), ("tensorrt", known.tensorrt)):
        metadata = packages / f"{name}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (packages / "tensorrt_llm").mkdir()
    (packages / "tensorrt_llm" / "__init__.py").write_text("raise ImportError('a name alone')\n")
    (packages / "tensorrt_llm" / "version.py").write_text(f'__version__ = "{TENSORRT_LLM}"\n')
    return f"local:{folder / 'bin/python3'}"
