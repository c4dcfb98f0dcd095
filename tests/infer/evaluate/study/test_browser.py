"""Raters click through the page in a real browser."""

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
