"""The rendered `config.pbtxt` files, against snapshots.

After an intended change, write them again: `ENGINEHOUSE_WRITE_SNAPSHOTS=1 pytest tests/tasks/triton/test_config.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra.errors import UsageError
from tasks.triton.config import instantiate, llm_config, public_config, release_config

SNAPSHOTS = Path(__file__).parent / "snapshots"
NAMES = {"llm": "m--r7--llm", "release": "m--r7"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llm", llm_config(tickets=True)),
        ("release", release_config(tickets=True)),
        ("public", public_config("m", instantiate(release_config(tickets=True), NAMES))),
        ("llm-r7", instantiate(llm_config(tickets=True), NAMES)),
        ("release-r7", instantiate(release_config(tickets=True), NAMES)),
        ("llm-several", llm_config(instances=3, calls="tensorrt_llm", tickets=True, hands_on=True)),
        ("release-several", release_config(tickets=True, hands_on=True)),
    ],
)
def test_rendered_as_in_the_snapshot(name: str, text: str) -> None:
    snapshot = SNAPSHOTS / f"{name}.pbtxt"
    if os.environ.get("ENGINEHOUSE_WRITE_SNAPSHOTS"):
        snapshot.write_text(text)
    assert text == snapshot.read_text()


def test_a_model_that_the_release_lacks_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        instantiate(release_config(), {"release": "m--r7"})
    assert caught.value.code == "triton-config" and "'llm'" in caught.value.message


def test_what_is_no_configuration_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        instantiate('name: "llm" unheard_of: 1', NAMES)
    assert caught.value.code == "triton-config" and "unheard_of" in caught.value.message
