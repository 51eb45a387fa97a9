"""`python -m tests.gpu [PART …]`"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.gpu import faults, gates, memory_of_releases, promotions, quantized, rebuilds, toolchain
from tests.gpu.campaign import Campaign
from tests.gpu.house import house
from tests.gpu.sizes import SIZES
from tests.gpu.table import Table

PARTS: dict[int, Callable[[Campaign], None]] = {
    1: rebuilds.run,
    2: memory_of_releases.run,
    3: promotions.run,
    4: faults.run,
    5: quantized.run,
    6: gates.run,
}


def main(parts: list[int]) -> int:
    sizes = SIZES[os.environ.get("ENGINEHOUSE_GPU_SIZES", "full")]
    table = Table()
    with tempfile.TemporaryDirectory(prefix="enginehouse-gpu-") as temporary:
        folder = Path(os.environ.get("ENGINEHOUSE_GPU_FOLDER") or temporary)
        python = os.environ.get("ENGINEHOUSE_GPU_TOOLCHAIN", "")
        setting = toolchain.make(folder / "toolchain", python) if python else ""
        os.environ["ENGINEHOUSE_TOOLCHAIN"] = setting  # of what part 5 runs beside the flow
        before = faults.Machine.now(sizes)
        with house(folder, sizes, setting) as made:
            campaign = Campaign(made, sizes, table, folder, python)
            for part in parts:
                table.part, began = part, time.monotonic()
                try:
                    PARTS[part](campaign)
                except Exception as error:  # one part's trouble must not hide what the others measured
                    traceback.print_exc()
                    table.goal("the part ran to its end", f"{type(error).__name__}: {error}"[:300], "yes", met=False)
                table.figure("the whole part", f"{time.monotonic() - began:.0f} s")
        table.part = 0
        faults.nothing_is_left(table, before, sizes)
    print(f"\n{table.text()}")
    return int(table.missed)


if __name__ == "__main__":
    sys.exit(main([int(word) for word in sys.argv[1:]] or list(PARTS)))
