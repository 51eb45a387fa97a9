"""Where requests of a bucket go."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from infra.s3.bucket import Bucket


@pytest.mark.parametrize(
    ("style", "host", "path"),
    [
        (None, "oss-none.example.com", "/models/key"),
        ("path", "oss-path.example.com", "/models/key"),
        ("virtual", "models.oss-virtual.example.com", "/key"),
    ],
)
def test_the_addressing_style_is_that_of_awss_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: str | None, host: str, path: str
) -> None:
    config = tmp_path / "config"
    config.write_text("[default]\n" + ("" if style is None else f"s3 =\n  addressing_style = {style}\n"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = Bucket("models", "", f"https://oss-{str(style).lower()}.example.com")
    for client in (bucket.client, bucket.body_client):
        url = urlsplit(client.generate_presigned_url("get_object", Params={"Bucket": bucket.name, "Key": "key"}))
        assert (url.netloc, url.path) == (host, path)
