"""What a person sees of a candidate that waits, in the Prefect UI."""

from __future__ import annotations

import json
import re
from urllib.parse import parse_qs, urljoin, urlsplit
from uuid import UUID

from flows.approval_page import page
from tasks.report.release import ReleaseReport
from tasks.targets.gate_record import Verdict
from tasks.targets.release import Intent, Result

DEPLOYMENT = UUID(int=7)
INTENT, LIVE = (
    Intent(
        model="tiny", release=number, repository="r", digest="d", recipe={}, source="hf://org/base@main", flow_run="f"
    )
    for number in (8, 7)
)
RESULT = Result(
    release=8,
    state="undecided",
    gates=(Verdict(gate="mine", kind="quality", state="undecided", reason="a | b", samples=50),),
)


REPORT = ReleaseReport("local", INTENT, RESULT, gates=(), before=LIVE, why="", made_of=())


def test_the_links_fill_in_the_form() -> None:
    shown = page(REPORT, DEPLOYMENT)
    links = [found[1] for found in re.finditer(r"\]\((\.\./\.\./deployments/deployment/\S+)\)", shown)]
    filled = [json.loads(parse_qs(urlsplit(link).query)["parameters"][0]) for link in links]
    about = {"model": "tiny", "release": 8, "target": "local"}
    assert filled == [about | {"decision": "approve"}, about | {"decision": "reject"}]
    for ui in ("http://prefect:4200", "http://prefect:4200/v2"):
        assert {urljoin(f"{ui}/artifacts/artifact/8", link).partition("?")[0] for link in links} == {
            f"{ui}/deployments/deployment/{DEPLOYMENT}/run"
        }


def test_it_has_the_report_and_the_commands() -> None:
    shown = page(REPORT, None)
    assert "| mine | undecided | 50 | a &#124; b |" in shown and "Compared with release 7." in shown
    assert "enginehouse reject tiny --release 8 --target local" in shown
    assert "/deployments/" not in shown  # of a server without that deployment
