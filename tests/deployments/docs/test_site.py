"""What `make docs` gives to the generator: every link of a page leads to something that lies beside it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from deployments.docs.site import CONFIGURATION, pages, put_together

_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def test_every_link_leads_to_something_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "site" / "left").mkdir(parents=True)
    put_together(tmp_path / "site")
    put = tmp_path / "site" / "pages"
    assert not (tmp_path / "site" / "left").exists()
    found = {str(path.relative_to(put)) for path in put.rglob("*.md")}
    assert found == set(pages())
    links = [(page, link) for page in sorted(found) for link in _LINK.findall(_FENCE.sub("", (put / page).read_text()))]
    assert len(links) > 200
    assert [(page, link) for page, link in links if not (put / page).parent.joinpath(link).is_file()] == []
    assert (put / "infra/compose.yaml").is_file() and (put / "docs/screenshots/run.png").is_file()


def test_the_configuration_names_the_folders_beside_it() -> None:
    project = tomllib.loads(CONFIGURATION.read_text())["project"]
    assert (project["docs_dir"], project["site_dir"]) == ("pages", "site")
    assert project["theme"]["font"] is False
