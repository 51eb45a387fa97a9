"""The Prefect UI in a real browser: a rebuild asked for in its form, followed to its end, and what it shows.

Only what a person sees is asserted, and nothing but this machine is asked. With ENGINEHOUSE_SCREENSHOTS=DIR the
pictures of docs/screenshots are made anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import pytest
import yaml
from playwright.sync_api import Locator, Page, Route, expect, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from infra.images import OWN_TABLE
from tests.flows.build_worker import PRODUCT, register, worker
from tests.standin import weights
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from tests.flows.conftest import House

pytestmark = pytest.mark.slow

MODEL = "smollm2-135m"
_RUN_MS = 180_000 * PATIENCE
_ASKED_MS = 10_000 * PATIENCE


@pytest.fixture
def page() -> Iterator[Page]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")

    def refuse(route: Route) -> None:
        route.abort()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        page = browser.new_page(viewport={"width": 1200, "height": 1320})
        page.route(re.compile(r"^https?://(?!127\.0\.0\.1:)"), refuse)
        page.set_default_timeout(30_000 * PATIENCE)
        expect.set_options(timeout=30_000 * PATIENCE)
        yield page
        browser.close()


def picture(page: Page, name: str) -> None:
    """For the documentation, once the page has drawn itself."""
    if folder := os.environ.get("ENGINEHOUSE_SCREENSHOTS"):
        page.wait_for_timeout(3_000)
        page.screenshot(path=Path(folder) / f"{name}.png")


def log_in(page: Page, house: House) -> None:
    """With what `enginehouse ui` prints; nothing else opens the UI."""
    told = json.loads(house.run("ui", "--json"))
    page.goto(told["url"])
    for login in ("enginehouse:guess", told["login"]):
        page.get_by_placeholder("admin:pass").fill(login)
        page.get_by_role("button", name="Login").click()
        if login != told["login"]:
            expect(page.get_by_text("Invalid credentials", exact=True)).to_be_visible()
            expect(page.get_by_role("link", name="Deployments")).to_be_hidden()


def home(page: Page, house: House) -> str:
    """Log in. The address of the UI, which has a folder of its own."""
    log_in(page, house)
    deployments = page.get_by_role("link", name="Deployments")
    expect(deployments).to_be_visible()
    return address(page, deployments).removesuffix("/deployments")


def open_deployment(page: Page, house: House) -> None:
    """From the login of the UI to the deployment `rebuild`."""
    log_in(page, house)
    page.get_by_role("link", name="Deployments").click()
    page.locator("a[href*='/deployments/deployment/']", has_text=re.compile("^rebuild$")).click()


def open_form(page: Page, house: House) -> None:
    """The same, and its form."""
    open_deployment(page, house)
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom run").click()


def write_json(page: Page, text: str) -> None:
    """Into the form's one editor, which completes brackets that are typed."""
    editor = page.locator(".cm-content")
    editor.click()
    editor.press("Control+A")
    page.keyboard.insert_text(text)
    expect(editor).to_have_text(text)


def choose(page: Page, field: str, option: str) -> None:
    page.get_by_label(f"Select {field}").click()
    page.get_by_role("option", name=option, exact=True).click()


def submit(page: Page) -> str:
    """Press the button until the server has made a run. The run's id."""
    while True:
        try:
            with page.expect_request(re.compile("/create_flow_run$"), timeout=_ASKED_MS) as asked:
                page.get_by_role("button", name="Submit").click()
        except PlaywrightTimeout:  # the click came while the form drew itself, or its check of the values had no answer
            continue
        answer = asked.value.response()
        assert answer is not None
        if answer.status != 503:
            return answer.json()["id"]
        # SQLite under load. What the page says of it lies over the button, and stays while the pointer is on it.
        page.mouse.move(0, 0)
        expect(page.get_by_text("Unknown error while creating flow run.")).to_be_hidden()


def follow(page: Page) -> str:
    """Submit the form, and look on until the run is completed. The address of its page."""
    run = submit(page)
    page.get_by_role("button", name="View run").click()
    expect(page).to_have_url(re.compile(f"/{run}"))
    expect(page.get_by_role("tab", name="Subflow Runs")).to_be_visible()
    # The first tab has the run's own state alone.
    expect(page.get_by_text("Completed", exact=True)).to_be_visible(timeout=_RUN_MS)
    page.reload(wait_until="commit")  # the graph of a run that was followed is drawn for its beginning
    expect(page.get_by_text("Completed", exact=True)).to_be_visible(timeout=_RUN_MS)
    return page.url


def address(page: Page, link: Locator) -> str:
    return urljoin(page.url, link.get_attribute("href"))


def open_artifact(page: Page, run_page: str, key: str) -> None:
    """From a run to the newest artifact of that key, which must be the run's."""
    page.goto(run_page)
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_role("link", name=key).click()
    # Followed by its address: a click is lost where the page just then draws its history again.
    page.goto(address(page, page.locator("a[href*='/artifacts/artifact/']").first))
    expect(page.locator("a[href*='/runs/flow-run/']").first).to_have_attribute("href", urlsplit(run_page).path)


@pytest.mark.long
def test_a_rebuild_from_the_form_to_its_artifacts(house: House, live: dict[str, Any], page: Page) -> None:
    house.run("deploy")
    open_form(page, house)
    # The form shows what is wrong beside its field, and nothing runs.
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("'model' is a required property", exact=True)).to_be_visible()

    choose(page, "model", MODEL)
    expect(page.get_by_label("runtime (Optional)")).to_have_value("")  # no version is known here
    write_json(page, '{"quantization": "q4_1"}')
    choose(page, "targets", "local")
    page.keyboard.press("Escape")
    choose(page, "refresh", "build")
    expect(page.get_by_label("Select until")).to_have_text("promote")
    expect(page.get_by_text("Error creating flow run")).to_be_hidden()
    picture(page, "form")
    run_page = follow(page)
    picture(page, "run")
    page.get_by_role("tab", name="Task Runs").click()
    expect(page.get_by_text(re.compile(rf"^promote {MODEL} release \d+ on local$")).first).to_be_visible()

    open_artifact(page, run_page, f"prompts-{MODEL}-local")
    expect(page.get_by_text("How do I count to nine in French?").first).to_be_visible()
    expect(page.get_by_text(re.compile("^Expected: ")).first).to_be_visible()
    picture(page, "prompts")
    open_artifact(page, run_page, f"report-{MODEL}-local")
    expect(page.get_by_text("every gate passed").or_(page.get_by_text("the test prompts passed")).first).to_be_visible()
    picture(page, "report")
    open_artifact(page, run_page, f"release-{MODEL}-local")
    expect(page.get_by_role("row", name="quantization q4_1")).to_be_visible()
    expect(page.get_by_text('quantization: "q8_0" → "q4_1"').first).to_be_visible()
    open_artifact(page, run_page, f"lineage-{MODEL}")
    expect(page.locator("svg").get_by_text("public name").first).to_be_visible()
    picture(page, "lineage")


def test_the_fleet_is_a_page(house: House, live: dict[str, Any], page: Page) -> None:
    house.run("deploy")
    open_deployment(page, house)
    page.get_by_role("tab", name="Description").click()
    page.get_by_role("link", name="The fleet").click()
    page.goto(address(page, page.locator("a[href*='/artifacts/artifact/']").first))
    row = page.get_by_role("row", name=re.compile(f"^{MODEL} @"))
    expect(row).to_contain_text("live")
    expect(row.get_by_role("link", name=MODEL)).to_have_attribute("href", f"../key/report-{MODEL}-local")
    picture(page, "fleet")


def test_a_refused_run_says_what_a_gate_said(house: House, refused: dict[str, Any], page: Page) -> None:
    page.goto(f"{home(page, house)}/runs/flow-run/{refused['flow_run']}")
    expect(page.get_by_text("Refused", exact=True).first).to_be_visible()
    expect(page.get_by_text("no model ever says this").first).to_be_visible()
    expect(page.get_by_text("Traceback")).to_be_hidden()
    picture(page, "refused")
    page.get_by_role("tab", name="Details").click()
    expect(page.get_by_text("hint: ").first).to_be_visible()
    expect(page.get_by_text(f"model:{MODEL}", exact=True).first).to_be_visible()


@pytest.mark.long
def test_a_candidate_is_approved_by_its_button(house: House, live: dict[str, Any], page: Page) -> None:
    name = "pressed"

    def change(document: dict[str, Any]) -> None:
        document["serving"]["slots"] = 3
        document["prompts"] = document["prompts"][:1]
        document["approval"] = {"when": "always", "timeout_hours": 24}

    house.add_model(name, change)
    house.run("deploy")
    waiting = house.rebuild(name, code=4)
    assert waiting["state"] == "waiting" and house.target.current(name)[0].public is None
    open_artifact(page, f"{home(page, house)}/runs/flow-run/{waiting['flow_run']}", f"approval-{name}-local")
    expect(page.get_by_role("row", name=re.compile("^smoke passed"))).to_be_visible()
    picture(page, "approval")
    page.goto(address(page, page.get_by_role("link", name="Approve", exact=True)))
    # The form has everything but who decides, and takes nothing without that.
    expect(page.get_by_label("Select model")).to_have_text(name)
    expect(page.get_by_label("Select decision")).to_have_text("approve")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("'by' is a required property", exact=True)).to_be_visible()
    page.get_by_label("by", exact=True).fill("ann@desk")
    page.get_by_label("note (Optional)").fill("it counts to nine")
    submit(page)
    public = waiting["release"]
    house.wait_long(lambda: house.target.current(name)[0].public == public, "promotion")
    assert "was approved by ann@desk: it counts to nine" in house.run("releases", name)
    assert house.ask(name)


@pytest.mark.long
def test_an_engine_of_a_version_that_the_form_names(house: House, page: Page, tmp_path: Path) -> None:
    path = house.catalogue / "form-engine.yaml"
    runtime = {"tensorrt_llm": "0.12.0", "gpu": PRODUCT, "arch": "sm90", "gpus": 1}
    limits = {"max_batch_size": 4, "max_input_len": 64, "max_seq_len": 128, "max_num_tokens": 128}
    document = {
        "name": path.stem,
        "source": {"uri": f"file://{weights.make(tmp_path / 'weights', seed=path.stem)}"},
        "recipe": {"kind": "trt-engine", "runtime": runtime, **limits},
        "prompts": [{"name": "count", "text": "Count to nine.", "max_tokens": 8, "expect": {"min_tokens": 1}}],
    }
    register()
    try:
        path.write_text(yaml.safe_dump(document))
        with worker(house, tmp_path, "1.2.1"):
            replace(house, environment={**house.environment, "ENGINEHOUSE_IMAGES": str(OWN_TABLE)}).run("deploy")
            open_form(page, house)
            choose(page, "model", path.stem)
            choose(page, "runtime", "1.2.1")
            choose(page, "until", "upload")
            follow(page)
            page.get_by_role("tab", name="Subflow Runs").click()
            build = page.get_by_role("link", name=f"build {path.stem}")
            open_artifact(page, address(page, build), f"engine-{path.stem}")
            expect(page.get_by_text("tensorrt_llm 1.2.1").first).to_be_visible()
    finally:
        path.unlink()
