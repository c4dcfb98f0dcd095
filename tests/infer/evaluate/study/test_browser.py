"""Raters click through the page in a real browser."""

import json
import threading
from collections.abc import Iterator

import pytest

from dsd_jax.infer.evaluate.study.answers import AnswerFile, read_answers
from dsd_jax.infer.evaluate.study.page import Delivery, write_page
from dsd_jax.infer.evaluate.study.record import Key, read_key, read_study
from dsd_jax.infer.evaluate.study.server import StudyServer
from tests.browser import Browser, Tab, chromium

PROGRAM = chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine"),
]
PRESENT = "items[state.answered.length].id"
LOADED = "[...document.querySelectorAll('#pictures img')].every((image) => image.naturalWidth > 0)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def answer_well(tab: Tab, key: Key) -> None:
    """Answers one item by keys, as a rater who looks."""
    item = key.items[tab.value(PRESENT)]
    before = tab.value("state.answered.length")
    for question in key.questions:
        (wanted, *_) = item.expected.get(question.id, (question.answers[1].value,))
        tab.press(str(question.place(wanted) + 1))
    assert tab.value("document.activeElement.id") == "next"
    tab.press("Enter")
    tab.wait(f"state.answered.length === {before + 1}")


def answer_blindly(tab: Tab, key: Key) -> None:
    """Answers one item by clicks, always with the last answer."""
    before = tab.value("state.answered.length")
    for question in key.questions:
        tab.click(f'[name="{question.id}"][value="{question.answers[-1].value}"]')
    tab.click("#next")
    tab.wait(f"state.answered.length === {before + 1}")


@pytest.mark.parametrize("mode", ["likert", "pair", "same"])
def test_two_raters_answer_a_study_and_one_fails_its_checks(browser, studies, mode):
    folder = studies[mode]
    key, study = read_key(folder), read_study(folder)
    browser.requests.clear()
    with AnswerFile(folder) as file, StudyServer(folder, file, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        good = browser.tab(f"{server.address}?rater=good", 1280, 900)
        hasty = browser.tab(f"{server.address}?rater=hasty", 390, 844)
        for tab, answer in ((good, answer_well), (hasty, answer_blindly)):
            tab.click("#start")
            for _ in range(3):
                tab.wait(LOADED)
                assert tab.value("document.documentElement.scrollWidth <= innerWidth")
                answer(tab, key)
            # The page is opened again, and goes on where it was.
            tab.wait("allSent()")
            tab.open(tab.value("location.href"))
            assert tab.value("state.answered.length") == 3
            while tab.value("state.answered.length < items.length"):
                answer(tab, key)
            tab.wait("!element('end').hidden && allSent()")
            tab.wait("element('thanks').textContent === 'Thank you. All your answers are saved.'")
        # An answered study stays answered.
        good.open(f"{server.address}?rater=good")
        assert not good.value("element('end').hidden")
        # The same name in another browser is another session.
        other = browser.tab(f"{server.address}?rater=good")
        other.click("#start")
        answer_blindly(other, key)
        other.wait("state.refused && !element('notice').hidden")
        assert "a second time" in other.value("element('notice').textContent")
        server.shutdown()
        thread.join()
    answers = read_answers(folder)
    items = len(study.lists[0])
    assert len(answers.rows) == 2 * items * len(key.questions)
    assert answers.failed == {"hasty"}
    assert sorted(answers.lists.values()) == [0, 1]
    for row in answers.rows:
        assert row.screen == {"good": "1280x900@1", "hasty": "390x844@1"}[row.rater]
        assert row.t_ms > 0
        assert (row.side != "") == (mode == "pair" and row.answer != "tie")
    hosts = {url.split("/")[2] for url in browser.requests if "//" in url}
    assert hosts == {server.address.split("/")[2]}


def test_without_a_server_the_page_is_a_file_and_gives_the_answers_as_one(
    browser, studies, tmp_path, monkeypatch
):
    folder = studies["same"]
    key = read_key(folder)
    monkeypatch.setattr("dsd_jax.infer.evaluate.study.page._INLINE", 0)
    write_page(folder, tmp_path / "page", Delivery())
    down = tmp_path / "down"
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(down))
    tab = browser.tab((tmp_path / "page" / "index.html").as_uri() + "?rater=file&list=2")
    tab.click("#start")
    while tab.value("state.answered.length < items.length"):
        tab.wait(LOADED)
        answer_well(tab, key)
    assert "send the file" in tab.value("element('thanks').textContent")
    assert tab.value("rows().length") == len(read_study(folder).lists[2])
    assert tab.value("state.list") == 2


def finished(tab: Tab, key: Key) -> None:
    """Answers a whole study."""
    tab.click("#start")
    while tab.value("state.answered.length < items.length"):
        tab.wait(LOADED)
        answer_well(tab, key)


def test_mechanical_turk_gets_the_answers_and_nobody_else_does(browser, studies, tmp_path):
    key = read_key(studies["same"])
    write_page(studies["same"], tmp_path, Delivery(turk=True))
    page = (tmp_path / "index.html").as_uri()
    words = "?workerId=W1&assignmentId=A1&hitId=h&list=0&turkSubmitTo="
    tab = browser.tab(f"{page}{words}https://workersandbox.mturk.com")
    finished(tab, key)
    assert tab.value("element('submit').action") == (
        "https://workersandbox.mturk.com/mturk/externalSubmit"
    )
    sent = tab.value("Object.fromEntries(new FormData(element('submit')))")
    assert sent["assignmentId"] == "A1"
    rows = json.loads(sent["answers"])
    assert {(row["rater"], row["session"]) for row in rows} == {("W1", "A1")}
    assert len(rows) == len(read_study(studies["same"]).lists[0])
    evil = browser.tab(f"{page}{words}https://evil.example")
    finished(evil, key)
    assert evil.value("element('submit').hidden")
    preview = browser.tab(f"{page}?assignmentId=ASSIGNMENT_ID_NOT_AVAILABLE&hitId=h")
    assert preview.value("element('start').disabled")


def test_prolific_gets_its_rater_back_once_the_answers_are_saved(browser, studies, tmp_path):
    """A server that cannot be reached keeps the rater on the page, which tries again."""
    key = read_key(studies["same"])
    completion = "https://app.prolific.com/submissions/complete?cc=C1"
    write_page(studies["same"], tmp_path, Delivery("https://localhost:1/answers", completion))
    page = (tmp_path / "index.html").as_uri()
    tab = browser.tab(f"{page}?PROLIFIC_PID=p1&STUDY_ID=s&SESSION_ID=x1&list=1")
    finished(tab, key)
    tab.wait("!element('notice').hidden && !element('retry').hidden")
    assert tab.value("[state.rater, state.session, state.list]") == ["p1", "x1", 1]
    assert tab.value("element('complete').hidden")
    assert not tab.value("element('download').hidden")  # nothing is lost whatever happens
    tab.value("(window.fetch = async () => new Response('ok'), 0)")
    tab.click("#retry")
    tab.wait("!element('complete').hidden")
    assert tab.value("element('complete').href") == completion
    assert "All your answers are saved" in tab.value("element('thanks').textContent")


def test_a_picture_opens_large_and_closes_by_key_without_an_answer(browser, studies, tmp_path):
    write_page(studies["likert"], tmp_path, Delivery())
    tab = browser.tab((tmp_path / "index.html").as_uri())
    tab.click("#start")
    tab.wait(LOADED)
    tab.click("#pictures button")
    assert tab.value("element('zoom').open")
    tab.press("3")
    tab.press("Escape")
    tab.wait("!element('zoom').open")
    assert tab.value("document.querySelectorAll(':checked').length") == 0
    tab.press("9")  # no such answer
    assert tab.value("document.querySelectorAll(':checked').length") == 0
