"""Export a checkpoint of NeMo 2 to Hugging Face form: `nemo2_to_hf.py CHECKPOINT OUTPUT`.

NeMo's own interpreter runs this file, with nothing of Enginehouse beside it.
"""

import sys
from pathlib import Path


def main() -> None:
    from nemo.collections import llm  # pyright: ignore

    checkpoint, output = map(Path, sys.argv[1:])
    llm.export_ckpt(path=checkpoint, target="hf", output_path=output)  # pyright: ignore


if __name__ == "__main__":  # NeMo's workers import this file again
    main()
