"""Reference of the settings, from the class that reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from deployments.docs.markdown import code, in_table, table
from deployments.docs.texts import below_fields
from infra.settings import CHECKOUT, Settings

_HEAD = """\
# Settings

Each is an environment variable, or a line of `enginehouse.toml` in the current folder. A variable wins over the file. A
list or a table in the file stands for the words of the variable:

```toml
store = "s3://models/enginehouse"
lease_seconds = 20
watch_avoid = ["1.0.0rc1", "1.1.0rc4"]
pools = {build-sm90 = "kubernetes"}
```

What belongs together, and the variables of other programs beside them (`AWS_…`, `PREFECT_…`, `HF_TOKEN`), is in
[Your own servers](../how-to/own-servers.md).
"""

_PER_PROCESS = {
    "ENGINEHOUSE_NODE_METRICS_PORT": "The port of Triton's metrics. `enginehouse node` needs it.",
    "ENGINEHOUSE_NODE_HEALTH_PORT": "The port of a node's `GET /ready` and `GET /metrics`. Without it there are none.",
    "ENGINEHOUSE_CONTAINER_DIGEST": "The digest of the image in which a node or a worker runs, `sha256:…`.",
}
"""Variables of one process, which `enginehouse.toml` does not have."""


def settings_page() -> Iterator[str]:
    """The lines of the page."""
    yield from _HEAD.splitlines()
    yield ""
    rows = [(code(name), code(default), in_table(text)) for name, default, text in described()]
    yield from table(("variable", "default", "meaning"), rows)
    yield from ("## Of one process", "", "The file does not have these.", "")
    yield from table(("variable", "meaning"), [(code(name), in_table(text)) for name, text in _PER_PROCESS.items()])


def described() -> Iterator[tuple[str, str, str]]:
    """Variable, default and text of every setting. The text is the string below its field."""
    texts = below_fields(Settings)
    for field in fields(Settings):
        yield f"ENGINEHOUSE_{field.name.upper()}", _shown(field.default), texts[field.name]


def _shown(default: object) -> str:
    """A default as one would write it in the variable: a path in the checkout without the checkout."""
    match default:
        case None | () | "":
            return ""
        case bool():
            return str(default).lower()
        case float():
            return f"{default:g}"
        case Path():
            return os.path.relpath(default, CHECKOUT)
        case _:
            return str(default)
