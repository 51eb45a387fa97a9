from __future__ import annotations

from pathlib import Path

import pytest
from packaging.version import Version

from infra.errors import SettingsError
from infra.images import OWN_TABLE, images


def test_the_newest_image_of_each_version() -> None:
    found = images(OWN_TABLE)
    assert str(found[Version("1.2.1")]).endswith(":26.07-trtllm-python-py3")
    assert str(found[Version("0.10.0")]).endswith(":24.06-trtllm-python-py3")
    assert Version("1.3.0") not in found


def test_a_list_of_ones_own_pins_digests(tmp_path: Path) -> None:
    table, digest = tmp_path / "images.toml", f"sha256:{'ab' * 32}"
    table.write_text(f'[[image]]\nreference = "here/triton:1"\ntensorrt_llm = "1.2.1"\ndigest = "{digest}"\n')
    assert str(images(table)[Version("1.2.1")]) == f"here/triton:1@{digest}"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "image"),
        ('[[image]]\nreference = "a"\ntensorrt_llm = "new"', "'new'"),
        ('[[image]]\nreference = "a"\ntensorrt_llm = "1.2.1"\ndigest = "sha256:1"', "image.0.digest"),
        ('[[image]]\nreference = "a"\ntensorrt_llm = "1.2.1"\ntag = "b"', "image.0.tag"),
        ("image = 3", "image"),
        ("image =", "(at "),
    ],
)
def test_mistakes_name_the_file_and_the_field(tmp_path: Path, text: str, named: str) -> None:
    table = tmp_path / "images.toml"
    table.write_text(text)
    with pytest.raises(SettingsError) as caught:
        images(table)
    assert caught.value.code == "settings" and str(table) in caught.value.message
    assert named in caught.value.message.partition("not a list of images: ")[2]


def test_a_list_that_is_not_there_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        images(tmp_path / "none.toml")
    assert caught.value.code == "settings" and "ENGINEHOUSE_IMAGES" in caught.value.hint
