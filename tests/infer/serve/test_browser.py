"""People make images in a real browser."""

import contextlib
import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from PIL import Image

from dsd_jax.images import read_parameters
from dsd_jax.infer.enhance import Enhancement
from dsd_jax.infer.serve.app import create_app
from dsd_jax.infer.serve.catalogue import Catalogue
from dsd_jax.infer.serve.examples import TOY_LIGHTS, toy_examples
from dsd_jax.infer.serve.guard import Guard
from dsd_jax.infer.serve.page import page_routes
from dsd_jax.infer.serve.server import listen
from tests.browser import Browser, Tab, chromium
from tests.core.llm.server import Server

PROGRAM = chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine"),
]
READY = "!document.querySelector('#run').disabled"
DONE = "document.querySelector('.result')"
SHOWN = "document.querySelector('#stage').innerText"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def browser(program: Browser) -> Iterator[Browser]:
    """The browser of all tests, without tabs and complaints of the test before."""
    program.requests.clear()
    program.problems.clear()
    yield program
    program.close_tabs()


@contextlib.contextmanager
def serving(runner, guard: Guard = Guard(), catalogue: Catalogue | None = None) -> Iterator[str]:
    """The address of a server on this machine."""
    catalogue = catalogue or Catalogue(toy_examples())
    app = create_app(runner, guard, routes=(*page_routes(), *catalogue.routes()))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="error"))
    with listen("127.0.0.1", 0) as sock:
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def address(runner) -> Iterator[str]:
    with serving(runner) as made:
        yield made


def opened(browser: Browser, address: str, width: int = 1280) -> Tab:
    tab = browser.tab(address, width)
    tab.wait(READY)
    return tab


def choose(tab: Tab, field: str, value: object) -> None:
    """Chooses a value of a list or a slider."""
    element = f"document.querySelector('#{field}')"
    tab.value(f"{element}.value = {str(value)!r}")
    for event in ("input", "change"):
        tab.value(f"{element}.dispatchEvent(new Event('{event}', {{bubbles: true}}))")


def fill(tab: Tab, reference: Path | None, *, steps: int = 8, count: int = 2, seed: int = 5):
    if reference is not None:
        tab.upload("#file", reference)
        tab.wait("document.querySelector('#drop.filled img').naturalWidth > 0")
    tab.type("#text", "this cat on a chair")
    for name, value in (("steps", steps), ("count", count), ("seed", seed)):
        choose(tab, name, value)


@pytest.fixture
def picture(tmp_path, reference) -> Path:
    path = tmp_path / "cat.png"
    path.write_bytes(reference)
    return path


@pytest.mark.parametrize("width", [1280, 390])
def test_from_an_upload_to_images_a_download_and_their_settings_again(
    browser, runner, engine, address, picture, tmp_path, width
):
    engine.gate = threading.Semaphore(0)
    tab = opened(browser, address, width)
    tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    fill(tab, picture)
    choose(tab, "task", "relight")
    tab.wait("document.querySelector('#light').open")
    tab.click(".preset:nth-of-type(5)")
    tab.wait("document.querySelector('#sent').innerText.endsWith('by a warm lamp')")
    tab.press("Enter", ctrl=True)
    engine.gate.release(3)  # steps of two images each
    tab.wait(f"{SHOWN}.includes('Step 6 of 16')")
    tab.wait("document.querySelectorAll('.previews img').length === 2")
    engine.gate.release(100)
    tab.wait(DONE)
    assert tab.value("document.querySelector('#stage').getBoundingClientRect().top") < 100
    [request] = engine.requests
    assert request.prompt == "this cat on a chair, lit from the right by a warm lamp"
    assert (request.seeds, request.task, request.settings.i_guidance) == ((5, 6), "relight", 1.5)
    assert engine.frames[0] is not None

    tab.value("document.querySelector('.slide input').focus()")
    tab.press("ArrowRight")
    assert tab.value("document.querySelector('.slide').style.getPropertyValue('--at')") == "51%"
    tab.click(".strip label:nth-child(2)")
    tab.wait(f"{SHOWN}.includes('\\n6\\n')")
    tab.click(".views label:nth-child(3)")
    tab.wait("document.querySelector('.view.frames img').naturalWidth === 64")
    tab.click(".buttons a")
    path = tmp_path / "dsd-this-cat-on-a-chair-lit-6.png"
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    assert read_parameters(path) == {"seed": 6, "text": request.prompt}

    tab.open(address)  # the history outlives the page
    tab.wait(READY)
    tab.click(".entry")
    tab.wait(DONE)
    assert 0 < tab.value("document.querySelector('#stage').getBoundingClientRect().top") < 100
    tab.click(".strip label:nth-child(2)")
    tab.click(".buttons button")
    tab.wait("document.querySelector('#seed').value === '6'")
    tab.wait("document.querySelector('#sent').innerText.endsWith('by a warm lamp')")
    tab.press("Enter", ctrl=True)
    tab.wait("document.querySelectorAll('.entry').length === 2")
    again = engine.requests[1]
    assert (again.prompt, again.seeds, again.task) == (request.prompt, (6, 7), "relight")
    assert engine.frames[1].image.tobytes() == engine.frames[0].image.tobytes()
    assert tab.value("document.documentElement.scrollWidth <= innerWidth")
    assert browser.problems == []
    assert all(each.startswith((address, "blob:", "data:")) for each in browser.requests)


def test_an_example_runs_at_once_and_escape_stops_it(browser, runner, engine, address):
    engine.gate = threading.Semaphore(0)
    tab = opened(browser, address)
    tab.click(".example")
    engine.gate.release(1)
    tab.wait(f"{SHOWN}.includes('Step 2 of 56')")
    tab.press("Escape")
    tab.wait(f"{SHOWN}.includes('Nothing was made.')")
    tab.wait(READY)
    engine.gate.release(1)
    [task] = runner.tasks
    assert task.status == "cancelled"
    assert tab.value("document.querySelector('#history').hidden")


def test_another_light_takes_the_place_of_that_of_an_example(browser, runner, engine):
    with serving(runner, catalogue=Catalogue(toy_examples(), lights=TOY_LIGHTS)) as address:
        tab = opened(browser, address)
        tab.click(".example:nth-of-type(7)")
        tab.wait(DONE)
        tab.wait(READY)
        assert tab.value("document.querySelector('.preset').ariaPressed") == "true"
        tab.value(
            "const plain = fetch; window.fetch = async (...asked) => { "
            "await new Promise((next) => { setTimeout(next, 300); }); return plain(...asked); }"
        )
        tab.click(".preset:nth-of-type(2)")
        tab.press("Enter", ctrl=True)  # before the server has told the light
        tab.wait("document.querySelectorAll('.entry').length === 2")
    text = "this thing on beach at southeast"
    sent = [request.prompt for request in engine.requests]
    assert sent == [f"{text} warm left hard", f"{text} cool right soft"]


def test_a_light_that_the_server_does_not_tell_is_not_chosen(browser, runner, address):
    tab = opened(browser, address)
    tab.click("#light summary")
    tab.value("window.fetch = () => Promise.reject(new TypeError())")
    tab.click(".preset")
    tab.wait("document.querySelector('#say').innerText.includes('does not answer')")
    assert tab.value("document.querySelector('.preset').ariaPressed") == "false"
    assert tab.value("document.querySelector('#sent').hidden")


def test_a_task_that_has_no_reference_says_so(browser, address):
    tab = opened(browser, address)
    choose(tab, "task", "depth")
    note = "document.querySelector('#task-note').innerText"
    assert tab.value(note).endswith("It needs a reference.")
    tab.click(".example:nth-of-type(8)")
    tab.wait(DONE)
    assert "reference" not in tab.value(note)


def test_clearing_the_history_is_asked_about_and_leaves_what_is_under_way(browser, engine, address):
    tab = opened(browser, address)
    tab.value("window.confirm = (words) => { window.asked = words; return window.agreed; }")
    tab.click(".example:last-child")
    tab.wait(DONE)
    tab.wait(READY)
    tab.click("#clear")
    assert tab.value("window.asked") == "Delete the entry?"
    assert tab.value("document.querySelectorAll('.entry').length") == 1
    engine.gate = threading.Semaphore(0)
    tab.click("#run")
    tab.wait("document.querySelector('.running')")
    tab.value("window.agreed = true")
    tab.click("#clear")
    tab.wait("document.querySelector('#history').hidden")
    assert tab.value("Boolean(document.querySelector('.running'))")
    engine.gate.release(100)
    tab.wait(DONE)
    assert tab.value("document.querySelectorAll('.entry').length") == 1


def test_a_text_alone_needs_no_reference(browser, engine, address):
    tab = opened(browser, address)
    tab.click(".example:last-child")
    tab.wait(DONE)
    assert engine.frames == [None]
    assert set(engine.requests[0].lora.values()) == {0.0}
    assert not tab.value("Boolean(document.querySelector('.views'))")


def test_mistakes_and_failures_are_told_in_words(browser, engine, address, tmp_path):
    tab = opened(browser, address)
    tab.click("#run")
    tab.wait(f"{SHOWN}.includes('Text is missing or empty; describe the image that is wanted.')")
    assert tab.value("document.activeElement.id") == "text"
    assert not tab.value("Boolean(document.querySelector('#stage button'))")  # to fail once more
    tab.type("#text", "a cat")
    tab.wait("document.querySelector('#say').innerText === ''")
    choose(tab, "count", 10**9)
    tab.click("#run")
    tab.wait(f"{SHOWN}.includes('Number must be a whole number from 1 to 10')")
    choose(tab, "count", 2)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    tab.upload("#file", broken)
    tab.type("#text", "<img src=x onerror=alert(1)>")
    tab.click("#run")
    tab.wait(f"{SHOWN}.includes('This cannot be made')")
    tab.wait("document.querySelector('#file').ariaInvalid === 'true'")
    tab.click("#remove")
    assert tab.value("document.querySelector('#file').ariaInvalid") is None
    engine.fail_step = RuntimeError("/secret/place")
    tab.click("#run")
    tab.wait(f"{SHOWN}.includes('The device failed while it made this image; try again.')")
    tab.click("#stage .main")
    tab.wait(DONE)
    assert tab.value("document.querySelector('.result dd').innerText").startswith("<img src=x")
    assert [each for each in browser.problems if "Failed to load resource" not in each] == []


def test_a_vision_model_enhances_the_text_unless_the_person_minds(browser, runner, engine, picture):
    merged = "this cat with a green hat on a chair"
    with Server(lambda question: "a cat, a green hat" if question.pictures else merged) as model:
        enhancement = Enhancement(
            enhance_provider="openai", enhance_model="seer", enhance_base_url=model.openai,
            enhance_prompt="on",
        )  # fmt: skip
        with serving(runner, catalogue=Catalogue((), enhancement)) as address:
            tab = opened(browser, address)
            assert "by seer" in tab.value("document.querySelector('#enhance-note').innerText")
            fill(tab, picture)
            tab.click("#run")
            tab.wait(DONE)
            assert "the text was enhanced by seer" in tab.value(SHOWN)
            tab.click("#enhance")
            tab.click("#run")
            tab.wait("document.querySelectorAll('.entry').length === 2")
            assert model.received == 2
    assert [each.prompt for each in engine.requests] == [merged, "this cat on a chair"]


def test_a_server_with_a_key_asks_for_it_once(browser, runner, engine):
    with serving(runner, Guard.of("the-long-key", "127.0.0.1")) as address:
        tab = browser.tab(address)
        for key, words in (("wrong-key", "until you close"), ("the-long-key", "key is wrong")):
            tab.wait("document.querySelector('#key-box').open")
            tab.wait(f"document.querySelector('#key-note').innerText.includes('{words}')")
            tab.type("#key", key)
            tab.press("Enter")
            tab.wait("!document.querySelector('#key-box').open || "
                     "document.querySelector('#key').value === ''")  # fmt: skip
        tab.wait(READY)
        tab.open(address)
        tab.wait("document.querySelector('.example')")
        fill(tab, None)
        tab.click("#run")
        tab.wait(DONE)
        assert not tab.value("document.cookie || localStorage.length")


def test_a_server_that_ends_is_told(browser, runner):
    with serving(runner) as address:
        tab = opened(browser, address)
        tab.type("#text", "a cat")
    tab.click("#run")
    tab.wait(f"{SHOWN}.includes('The server does not answer. Is it still running?')")
    tab.wait("document.querySelector('#state').innerText === 'not reachable'")


def test_pictures_of_other_kinds_are_uploaded_too(browser, engine, address, tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (40, 50), "red").save(file, "TIFF")
    path = tmp_path / "cat.tiff"
    path.write_bytes(file.getvalue())
    tab = opened(browser, address)
    tab.upload("#file", path)
    tab.wait("document.querySelector('#drop.unseen')")
    fill(tab, None)
    tab.click("#run")
    tab.wait(DONE)
    assert engine.frames[0].image.getpixel((0, 0)) == (255, 0, 0)


def test_it_opens_on_the_weights_that_ship(browser):
    command = [sys.executable, "-m", "dsd_jax", "serve", "--toy", "--port", "0"]
    fast = ["--max_batch", "1", "--no-true_guidance"]
    with subprocess.Popen([*command, *fast], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = next(line for line in server.stdout if line.startswith("ready: "))
            tab = opened(browser, line.split()[1])
            assert tab.value("document.querySelector('#i_guidance').disabled")
            assert tab.value("document.querySelector('.preset').textContent") == "warm left hard"
            choose(tab, "count", 1)
            choose(tab, "steps", 8)
            tab.click(".example")
            tab.wait(DONE)
            tab.wait("document.querySelector('.before').naturalWidth === 64")
            assert browser.problems == []
        finally:
            server.terminate()
