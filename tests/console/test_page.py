"""Each feature of the console, clicked in a real browser against the real daemon."""

import json
import re
import urllib.request
from typing import Any

import pytest
from playwright.sync_api import FilePayload, Route, expect

from tests.console.conftest import Opener, picture
from tests.console.rig import Stack
from tests.waiting import wait_until

TASKS = ("image_embedding", "face_detection", "face_embedding")
NOWHERE = 900_000


def ask(running: Stack, media_store_id: int, task: str) -> str:
    status, job = running.daemon.request("POST", f"/job/{task}", {"media_store_id": media_store_id})
    assert status == 201, job
    return str(job["job_id"])


def done(running: Stack, media_store_id: int, *tasks: str) -> list[dict[str, Any]]:
    """Ask for a picture and wait until it is done; return the jobs."""
    ids = [ask(running, media_store_id, task) for task in tasks or TASKS]
    ends = ("completed", "error")
    wait_until(lambda: all(running.daemon.job(each)["status"] in ends for each in ids))
    return [running.daemon.job(each) for each in ids]


@pytest.fixture(scope="module")
def library(running: Stack, portrait: bytes) -> dict[str, int]:
    """Return the ids of a few pictures that are done."""
    files = {
        "astronaut.png": portrait,
        **{name: picture(name) for name in ("chelsea.png", "coffee.png")},
    }
    ids = {name: running.add(data, name) for name, data in files.items()}
    for each in ids.values():
        done(running, each)
    return ids


def test_it_shows_queue_models_and_what_the_daemon_is_connected_to(
    running: Stack, library: dict[str, int], open_page: Opener
) -> None:
    page = open_page(running).ready()

    expect(page.by("#headline")).to_have_text("Nothing waits.")
    expect(page.by("#tasks > li")).to_have_count(3)
    done_jobs = page.by('#tasks > li >> nth=0 >> [data-value="done"]')
    expect(done_jobs).not_to_have_text("0")
    expect(page.by("#models > li")).to_have_count(4)
    untrained = page.by("#models .tag.loud").first
    expect(untrained).to_have_text("UNTRAINED")
    assert (
        untrained.evaluate("each => getComputedStyle(each).backgroundColor") == "rgb(179, 36, 26)"
    )
    expect(page.by("#models > li").first).to_contain_text("cpu")
    for part in ("MQTT broker", "Queue", "Media store", "Vector database"):
        expect(
            page.by(
                "#parts li",
            ).filter(has_text=part)
        ).to_contain_text("Up")
    page.shoot("home")


def test_results_are_pictures_with_boxes_and_landmarks_where_the_job_has_them(
    running: Stack, portrait: bytes, open_page: Opener
) -> None:
    page = open_page(running).ready()
    media_store_id = running.add(portrait, "new.png")
    _, faces, _ = done(running, media_store_id)

    # It was asked for after the page was open: events brought it.
    tile = page.tile(media_store_id)
    expect(tile).to_contain_text("1 face")
    expect(tile).to_contain_text("vector")
    (face,) = faces["result"]["faces"]
    box = tile.locator("rect.line")
    expect(box).to_have_count(1)
    assert [float(box.get_attribute(name) or "") for name in ("x", "y", "width", "height")] == [
        face["bbox"][name] for name in ("x", "y", "width", "height")
    ]
    assert tile.locator("path.mark").count() == 5
    assert tile.locator("svg").get_attribute("viewBox") == "0 0 512 512"
    # It is there before it is decoded.
    size = tile.locator("img").evaluate(
        "each => each.decode().then(() => [each.naturalWidth, each.naturalHeight])"
    )
    assert size == [480, 480]


def test_a_picture_opens_with_all_that_is_known_of_it_and_the_keyboard_comes_back(
    running: Stack, library: dict[str, int], open_page: Opener
) -> None:
    page = open_page(running).ready()
    tile = page.tile(library["astronaut.png"])
    tile.focus()
    page.page.keyboard.press("Enter")

    expect(page.by("#detail-title")).to_have_text(f"Picture {library['astronaut.png']}")
    expect(page.by("#detail rect.line")).to_have_count(1)
    expect(page.by("#detail-facts")).to_contain_text("ViT-B-32")
    expect(page.by("#detail-facts")).to_contain_text("UNTRAINED")
    expect(page.by("#detail-facts")).to_contain_text("decode")
    page.by(
        "#detail-facts button",
    ).filter(has_text="Find face 1").focus()
    expect(page.by("#detail g.face[data-chosen]")).to_have_count(1)
    page.shoot("detail")
    page.page.keyboard.press("Escape")
    expect(page.by("#detail")).to_be_hidden()
    expect(tile).to_be_focused()


def test_a_text_is_searched_for_and_a_threshold_cuts(
    running: Stack, library: dict[str, int], open_page: Opener
) -> None:
    page = open_page(running).ready()
    page.by("#search-text").fill("a cat")
    page.page.keyboard.press("Enter")

    expect(page.by("#found-status")).to_contain_text("result")
    expect(page.by("#found-query")).to_have_text("“a cat”")
    number = page.by("#found-list > li").count()
    assert number >= len(library)
    page.by("#threshold").focus()
    for _ in range(99):
        page.page.keyboard.press("ArrowRight")
    expect(page.by("#found-status")).to_have_text(f"0 results of {number} at 0.99 or more")
    expect(page.by("#found-list > li")).to_have_count(0)
    page.by("#found-close").click()
    expect(page.by("#found")).to_be_hidden()


def test_a_search_is_narrowed_to_what_is_meant(
    running: Stack, library: dict[str, int], open_page: Opener
) -> None:
    page = open_page(running).ready()
    cat, coffee = library["chelsea.png"], library["coffee.png"]
    page.by("#search-text").fill("a cat")
    page.page.keyboard.press("Enter")
    expect(page.by("#found-status")).to_contain_text("result")

    page.by("#filters > summary").click()
    page.by("#filter-ids").fill(f"{cat}, {coffee}")
    page.by("#filter-ids").press("Enter")
    expect(page.by("#found-status")).to_have_text("2 results")
    expect(page.by("#filters")).to_have_attribute("data-set", "")
    page.by("#filter-payload").fill(f"media_store_id={cat}")
    page.by("#filter-payload").press("Enter")
    expect(page.by("#found-status")).to_have_text("1 result")
    page.shoot("narrowed")
    page.by("#filter-to").fill("2020-01-01")
    page.by("#filter-to").press("Enter")
    expect(page.by("#found-status")).to_have_text("None of those that are meant was found.")
    page.by("#filter-none").click()
    expect(page.by("#found-list > li").nth(2)).to_be_visible()

    page.by("#filter-payload").fill("no name")
    page.by("#filter-payload").press("Enter")
    expect(page.by("#found-status")).to_contain_text("payload")
    # The browser notes each answer of 400 and above.
    page.errors = [each for each in page.errors if "422" not in each]


def test_more_results_come_beneath(
    running: Stack, library: dict[str, int], open_page: Opener
) -> None:
    page = open_page(running)
    page.page.route(
        "**/search/image_embeddings?*",
        lambda route: route.continue_(url=route.request.url.replace("limit=60", "limit=2")),
    )
    page.ready()
    page.by("#search-text").fill("a cat")
    page.page.keyboard.press("Enter")

    expect(page.by("#found-list > li")).to_have_count(2)
    page.by("#found-more").click()
    expect(page.by("#found-list > li").nth(2)).to_be_visible()
    assert len(library) > 2


def test_a_dropped_picture_finds_its_like_and_itself_with_a_score_of_one(
    running: Stack, library: dict[str, int], open_page: Opener
) -> None:
    page = open_page(running).ready()
    page.drop(picture("chelsea.png"), "cat.png", "similar")

    first = page.by("#found-list > li button").first
    expect(first).to_have_attribute("aria-label", f"Picture {library['chelsea.png']}, score 1.000")
    expect(page.by("#found-query")).to_contain_text("Like cat.png")
    page.shoot("search")


def test_a_face_is_searched_for_by_a_file_and_by_one_that_is_shown(
    running: Stack, library: dict[str, int], portrait: bytes, open_page: Opener
) -> None:
    page = open_page(running).ready()
    with page.page.expect_file_chooser() as chooser:
        page.by("#pick-face").click()
    chooser.value.set_files({"name": "me.png", "mimeType": "image/png", "buffer": portrait})

    found = page.tile(library["astronaut.png"], "#found-list")
    expect(found.first).to_contain_text("1.000")
    expect(found.locator("g.face[data-chosen]").first).to_be_attached()
    page.tile(library["astronaut.png"]).click()
    page.by("#detail-facts button").filter(has_text="Find face 1").click()
    expect(page.by("#found-query")).to_have_text(
        f"The face 1 of picture {library['astronaut.png']}"
    )
    expect(page.by("#found-status")).not_to_have_text("Searching…")


def test_a_search_that_fails_says_why(
    running: Stack, library: dict[str, int], open_page: Opener
) -> None:
    page = open_page(running).ready()
    page.drop(picture("coffee.png"), "coffee.png", "face")

    expect(page.by("#found-status")).to_contain_text("no face")
    # The browser notes each answer of 400 and above.
    page.errors = [each for each in page.errors if "422" not in each]


def test_a_dropped_picture_is_uploaded_asked_for_and_followed_until_it_is_done(
    running: Stack, open_page: Opener
) -> None:
    page = open_page(running).ready()
    page.drop(picture("rocket.jpg"), "rocket.jpg", "add")

    row = page.by("#adding-list > li").filter(has_text="rocket.jpg")
    expect(row.locator(".tag")).to_have_text("Done")
    expect(row.locator(".steps")).to_contain_text("Picture vectors: done")
    expect(page.by("#adding-sum")).to_have_text("1 picture done")
    status, answer = running.daemon.request("GET", "/job?limit=3")
    assert status == 200
    (media_store_id,) = {job["media_store_id"] for job in answer["jobs"]}
    assert {job["task_type"] for job in answer["jobs"]} == set(TASKS)
    expect(page.tile(media_store_id)).to_be_visible()
    page.shoot("adding")


def test_a_picture_that_is_deleted_while_its_jobs_wait_is_followed_no_longer(
    running: Stack, open_page: Opener
) -> None:
    # Twenty such, whose events were missed, hid all that were added after them, for as long as the
    # page was open.
    page = open_page(running).ready()
    asked: list[str] = []

    def gone(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=404, json={"code": "job_not_found", "detail": "no such job"})

    running.daemon.request("POST", "/queue/face_detection/pause", {})
    page.page.route(re.compile(r"/job/[0-9a-f-]{36}$"), gone)
    page.drop(picture("rocket.jpg"), "rocket.jpg", "add")

    row = page.by("#adding-list > li").filter(has_text="rocket.jpg")
    expect(row.locator(".tag")).to_have_text("Failed")
    expect(row.locator(".steps")).to_contain_text("Faces found: deleted")
    assert asked
    running.daemon.request("POST", "/queue/face_detection/resume", {})
    page.errors = [each for each in page.errors if "404" not in each]


def test_several_files_are_chosen_and_one_that_is_no_picture_says_so(
    running: Stack, open_page: Opener
) -> None:
    page = open_page(running).ready()
    with page.page.expect_file_chooser() as chooser:
        page.by("#add").click()
    good: FilePayload = {"name": "moon.png", "mimeType": "image/png", "buffer": picture("moon.png")}
    bad: FilePayload = {
        "name": "words.png",
        "mimeType": "image/png",
        "buffer": b"only words, no picture",
    }
    chooser.value.set_files([good, bad])

    expect(page.by("#adding-sum")).to_have_text("2 pictures done")
    row = page.by("#adding-list > li").filter(has_text="words.png")
    expect(row.locator(".tag")).to_have_text("Failed")
    expect(row).to_contain_text("not a picture")
    page.errors = [each for each in page.errors if "422" not in each]


def test_a_task_type_is_paused_and_resumed_by_the_keyboard_alone(
    running: Stack, open_page: Opener
) -> None:
    page = open_page(running).ready()
    card = page.by("#tasks > li").filter(has_text="Faces found")
    press = page.page.keyboard.press
    for _ in range(30):
        press("Tab")
        if (
            page.page.evaluate("document.activeElement.getAttribute('aria-label')")
            == "Pause: Faces found"
        ):
            break
    press("Enter")
    press("ArrowDown")
    press("ArrowDown")
    press("Enter")
    expect(card.locator(".task-note")).to_contain_text("Paused until")
    expect(card.get_by_role("button", name="Resume: Faces found")).to_be_visible()
    _, queue = running.daemon.request("GET", "/queue")
    assert queue["task_types"]["face_detection"]["paused_until"] is not None

    media_store_id = running.add(picture("page.png"), "page.png")
    job_id = ask(running, media_store_id, "face_detection")
    expect(card.locator('[data-value="pending"]')).to_have_text("1")
    expect(page.by("#headline")).to_have_text("1 job waits")
    page.shoot("paused")
    card.get_by_role("button", name="Resume: Faces found").press("Enter")
    expect(card.locator(".task-note")).to_have_text("Up to date")
    assert running.daemon.job(job_id)["status"] == "completed"


def test_a_card_that_is_out_of_date_undoes_nobodys_pause(running: Stack, open_page: Opener) -> None:
    page = open_page(running).ready()

    def another_is_quicker(route: Route) -> None:
        running.daemon.request("POST", "/queue/face_detection/pause", {})
        route.continue_()

    page.page.route("**/queue/face_detection/pause*", another_is_quicker)
    card = page.by("#tasks > li").filter(has_text="Faces found")
    card.get_by_role("button", name="Pause: Faces found").click()
    card.get_by_role("menuitem", name="For 1 hour").click()

    expect(card.locator(".task-note")).to_have_text("Paused until somebody resumes it")
    _, queue = running.daemon.request("GET", "/queue")
    assert queue["task_types"]["face_detection"]["paused_until"] is None
    card.get_by_role("button", name="Resume: Faces found").click()
    expect(card.locator(".task-note")).to_have_text("Up to date")
    page.errors = [each for each in page.errors if "409" not in each]


def test_what_fails_once_more_while_all_are_tried_again_is_not_tried_twice(
    running: Stack, open_page: Opener
) -> None:
    page = open_page(running).ready()
    asked: list[Any] = []

    def retried(route: Route) -> None:
        asked.append(route.request.post_data_json)
        body = {"retried": 1000, "left_out": 0, "more": len(asked) < 2, "before": 5}
        route.fulfill(json=body)

    page.page.route("**/job/retry", retried)
    # Clicked at once: the daemon tells its own failures again soon after somebody begins to watch.
    page.page.evaluate(
        """async () => {
            (await import("./console/failures.js")).showFailures({ groups: [{ code: "x",
                task_type: "face_detection", number: 2, latest: 1, message: "x: y" }] },
                { mayWrite: true });
            document.querySelector("#failures > li button").click();
        }"""
    )

    expect(page.by("#toast")).to_have_text("2,000 jobs will be tried again")
    assert [each.get("before") for each in asked] == [None, 5]


def test_failures_are_grouped_by_code_and_all_tried_again(
    running: Stack, open_page: Opener
) -> None:
    page = open_page(running).ready()
    for number in (1, 2):
        done(running, NOWHERE + number, "face_detection")

    group = page.by("#failures > li").filter(has_text="media_not_found")
    expect(group.locator("b")).to_have_text("2")
    expect(group).to_contain_text("the media store does not know picture")
    began = {each: failed_at(running, each) for each in (NOWHERE + 1, NOWHERE + 2)}
    group.get_by_role("button", name="Retry all").click()
    expect(page.by("#toast")).to_have_text("2 jobs will be tried again")
    wait_until(lambda: all(failed_at(running, each) > at for each, at in began.items()))


def failed_at(running: Stack, media_store_id: int) -> int:
    """Return when a picture's job failed; 0 while it runs."""
    _, found = running.daemon.request("GET", "/job?status=error&limit=100")
    return max(
        (job["completed_at"] for job in found["jobs"] if job["media_store_id"] == media_store_id),
        default=0,
    )


def test_colours_are_the_systems_until_chosen_and_the_choice_stays(
    running: Stack, open_page: Opener
) -> None:
    page = open_page(running, scheme="dark").ready()
    root = page.by("html")
    expect(root).to_have_attribute("data-theme", "dark")
    page.by("#theme").click()
    expect(root).to_have_attribute("data-theme", "light")
    page.page.reload()
    expect(root).to_have_attribute("data-theme", "light")


def test_nothing_is_pushed_around_as_the_page_fills(
    running: Stack, library: dict[str, int], open_page: Opener
) -> None:
    page = open_page(running).ready()
    expect(page.tile(library["coffee.png"]).locator("img")).to_be_visible()

    # Of the browser's own measure of layout shifts "good" is below 0.1.
    assert page.shifts() < 0.02


def test_axe_would_notice(running: Stack, open_page: Opener) -> None:
    page = open_page(running).ready()
    page.page.evaluate("document.getElementById('main').append(document.createElement('button'))")
    assert any(each.startswith("button-name") for each in page.violations())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_nothing_and_nobody_scrolls_sideways(
    running: Stack, library: dict[str, int], open_page: Opener, width: int, scheme: str
) -> None:
    page = open_page(running, width=width, scheme=scheme).ready()
    expect(page.tile(library["coffee.png"])).to_be_visible()
    assert page.violations() == []
    assert not page.is_too_wide()
    page.shoot(f"home-{width}-{scheme}")

    page.by("#search-text").fill("coffee")
    page.page.keyboard.press("Enter")
    expect(page.by("#found-list > li").first).to_be_visible()
    page.by("#tasks button").first.click()
    assert page.violations() == []
    assert not page.is_too_wide()
    page.shoot(f"search-{width}-{scheme}")

    page.page.keyboard.press("Escape")
    page.tile(library["astronaut.png"]).click()
    expect(page.by("#detail img")).to_be_visible()
    assert page.violations() == []
    page.shoot(f"detail-{width}-{scheme}")


def test_the_page_may_load_nothing_from_elsewhere(running: Stack) -> None:
    status, headers, body = running.get("", Accept="text/html")

    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert b"http" not in body.replace(b"http-equiv", b"")


def test_a_program_still_gets_the_greeting(running: Stack) -> None:
    status, greeting = running.daemon.request("GET", "/")
    assert (status, greeting["message"]) == (200, "inferd is running")


def test_previews_are_small_jpegs_made_here(running: Stack, portrait: bytes) -> None:
    media_store_id = running.add(portrait, "again.png")
    status, headers, body = running.get(f"console/picture/{media_store_id}")

    assert status == 200
    assert headers["Content-Type"] == "image/jpeg"
    assert (headers["X-Picture-Width"], headers["X-Picture-Height"]) == ("512", "512")
    assert body.startswith(b"\xff\xd8\xff")
    bad = running.add(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "x.svg")
    status, headers, body = running.get(f"console/picture/{bad}")
    assert (status, json.loads(body)["code"]) == (422, "unsupported_format")


def test_an_upload_that_another_site_could_send_is_refused(running: Stack) -> None:
    request = urllib.request.Request(
        f"{running.url}console/upload", data=b"x", headers={"Content-Type": "text/plain"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    with refused.value as answer:
        assert answer.code == 415
