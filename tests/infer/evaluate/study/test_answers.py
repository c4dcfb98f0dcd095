"""Answers are checked against the key, count once, and are on the disk when a rater is told so."""

import dataclasses
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dsd_jax import cli
from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.study.answers import (
    Answer,
    AnswerFile,
    AnswerSet,
    RefusedError,
    read_answers,
)
from dsd_jax.infer.evaluate.study.record import ANSWERS, read_key, read_study
from dsd_jax.infer.evaluate.study.server import StudyServer


@pytest.fixture
def folder(studies: dict[str, Path], tmp_path: Path) -> Path:
    """A study without answers that a test may fill."""
    for name in ("study.json", "key.json", "pictures"):
        (tmp_path / name).symlink_to(studies["likert"] / name)
    return tmp_path


def answer(folder: Path, place: int = 0, given: str = "3", number: int = 0, **fields) -> Answer:
    """An answer of anna to the first question about an item of her list."""
    study = read_study(folder)
    made = Answer(study.id, "anna", "s1", study.lists[number][place].id, "cp", given)
    return dataclasses.replace(made, **fields)


class TestAnswerSet:
    def test_an_answer_counts_once_however_often_it_comes(self, folder):
        answers = AnswerSet(read_key(folder))
        assert answers.add(answer(folder)) == answer(folder)
        assert answers.add(answer(folder, t_ms=5)) is None
        assert answers.rows == [answer(folder)]

    @pytest.mark.parametrize(
        ("fields", "refusal", "message"),
        [
            ({"study": "zzz"}, "another study", "an answer to study zzz; this is "),
            ({"item": "zzz"}, "unknown item", "there is no item zzz"),
            ({"question": "zzz"}, "unknown question", "there is no question zzz"),
            ({"answer": "6"}, "unknown answer", "cp is answered by 1, 2, 3, 4, 5, got '6'"),
            ({"answer": "4"}, "answered twice", "rater anna answered list 0 a second time"),
            ({"session": "s2"}, "answered twice", "or another person with the same id did"),
        ],
    )
    def test_what_does_not_belong_is_refused_with_its_reason(
        self, folder, fields, refusal, message
    ):
        answers = AnswerSet(read_key(folder), [answer(folder)])
        with pytest.raises(RefusedError, match=message) as caught:
            answers.add(answer(folder, **fields))
        assert caught.value.refusal == refusal
        assert answers.rows == [answer(folder)]

    def test_two_raters_with_one_id_are_told_by_their_lists(self, folder):
        answers = AnswerSet(read_key(folder), [answer(folder)])
        with pytest.raises(RefusedError, match="two raters are called anna: one has list 0, one"):
            answers.add(answer(folder, number=1, session="s2"))

    def test_checks_are_marked_by_the_key_not_by_the_sender(self, folder):
        key, answers = read_key(folder), AnswerSet(read_key(folder))
        for rater, given in (("good", "1"), ("bad", "5")):
            for name, item in key.items.items():
                if item.list == 0 and item.expected:
                    (question,) = item.expected
                    marked = answers.add(
                        Answer(key.study, rater, rater, name, question, given, check="passed")
                    )
                    assert marked is not None
                    assert marked.check == {"1": "passed", "5": "failed"}[given]
        assert answers.failed == {"bad"}
        ordinary = next(name for name in key.rated if key.items[name].list == 0)
        row = Answer(key.study, "good", "good", ordinary, "cp", "5", check="failed")
        assert answers.add(row) == dataclasses.replace(row, check="")

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"rater": "a b"}, "rater has 1 to 100 letters, digits and -_.@, got 'a b'"),
            ({"rater": "x" * 101}, "rater has 1 to 100 letters"),
            ({"session": ""}, "session has 1 to 100 letters"),
            ({"screen": "<script>"}, "screen is like 390x844@3, got '<script>'"),
            ({"t_ms": -1}, "t_ms is no time: -1"),
        ],
    )
    def test_values_that_no_page_sends_are_refused(self, folder, fields, message):
        with pytest.raises(UserError, match=message):
            answer(folder, **fields)


class TestAnswerFile:
    def test_answers_are_read_as_they_were_written_also_later(self, folder):
        with AnswerFile(folder) as file:
            assert file.append([answer(folder), answer(folder, 1)]) == 2
        with AnswerFile(folder) as file:
            assert file.append([answer(folder, 1), answer(folder, 2)]) == 1
        assert read_answers(folder).rows == [answer(folder, place) for place in range(3)]

    def test_what_comes_before_a_refused_answer_is_stored(self, folder):
        with AnswerFile(folder) as file, pytest.raises(RefusedError):
            file.append([answer(folder), answer(folder, item="zzz"), answer(folder, 1)])
        assert read_answers(folder).rows == [answer(folder)]

    def test_a_torn_last_line_is_dropped(self, folder):
        with AnswerFile(folder) as file:
            file.append([answer(folder), answer(folder, 1)])
        whole = (folder / ANSWERS).read_bytes()
        (folder / ANSWERS).write_bytes(whole[:-9])
        with AnswerFile(folder) as file:
            assert file.append([answer(folder, 1)]) == 1
        assert (folder / ANSWERS).read_bytes() == whole

    def test_an_answer_that_was_not_written_is_not_taken_for_stored(self, folder, monkeypatch):
        def full(number: int) -> None:
            raise OSError(28, "No space left on device")

        with AnswerFile(folder) as file:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                with pytest.raises(UserError, match=r"answers.jsonl: No space left on device"):
                    file.append([answer(folder)])
            assert (folder / ANSWERS).read_bytes() == b""
            assert file.append([answer(folder)]) == 1

    def test_one_process_at_a_time_has_the_answers(self, folder):
        with AnswerFile(folder), pytest.raises(UserError, match="is open in another process; stop"):
            AnswerFile(folder)

    def test_a_damaged_file_is_named_with_its_line(self, folder):
        row = dataclasses.asdict(answer(folder)) | {"item": "zzz"}
        (folder / ANSWERS).write_text(json.dumps(row) + "\n")
        with pytest.raises(UserError, match=r"answers.jsonl line 1: there is no item zzz"):
            read_answers(folder)
        with pytest.raises(UserError, match=r"answers.jsonl line 1"):
            AnswerFile(folder)

    def test_no_file_is_made_where_there_is_no_study(self, tmp_path):
        with pytest.raises(UserError, match=r"is no study: it has no key.json"):
            AnswerFile(tmp_path)
        assert not list(tmp_path.iterdir())


@pytest.fixture
def served(folder: Path) -> Iterator[SimpleNamespace]:
    """A server, and a function that asks it."""
    with AnswerFile(folder) as file, StudyServer(folder, file, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()

        def ask(method, path, body=None, **headers):
            connection = http.client.HTTPConnection(server.address.split("/")[2], timeout=60)
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read().decode(), response.headers

        def post(content, kind="application/json", **headers):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            return ask("POST", "/answers", body, Content_Type=kind, **headers)[:2]

        yield SimpleNamespace(ask=ask, post=post, folder=folder, address=server.address)
        server.shutdown()
        thread.join()


class TestServer:
    def test_an_answer_is_on_the_disk_when_the_rater_is_told_so(self, served):
        row = dataclasses.asdict(answer(served.folder))
        assert served.post({"answers": [row]}) == (200, "1 new answers\n")
        assert read_answers(served.folder).rows == [answer(served.folder)]
        assert served.post({"answers": [row]}) == (200, "0 new answers\n")
        status, text = served.post({"answers": [row | {"answer": "1"}]})
        assert (status, text) == (
            409,
            "rater anna answered list 0 a second time, or another person with the same id did\n",
        )
        assert read_answers(served.folder).rows == [answer(served.folder)]

    @pytest.mark.parametrize(
        ("content", "status", "message"),
        [
            (b"{", 400, "the request: not JSON"),
            (b"\xff", 400, "is not UTF-8"),
            ({}, 400, "the request: `answers` is missing"),
            ({"answers": {}}, 400, "the request: `answers`: input should be a valid tuple"),
            ({"answers": [{"study": "x"}]}, 400, "`answers.0.rater` is missing"),
            ({"answers": [3]}, 400, "`answers.0`"),
            (b"[" * 60_000, 400, "nested more than"),
            (b" " * 70_000, 413, "too long"),
        ],
    )
    def test_hostile_answers_are_refused(self, served, content, status, message):
        found, text = served.post(content)
        assert found == status
        assert message in text
        assert (served.folder / ANSWERS).read_bytes() == b""

    def test_pages_of_others_cannot_send_answers(self, served):
        row = dataclasses.asdict(answer(served.folder))
        assert served.post({"answers": [row]}, "text/plain")[0] == 415

    def test_a_body_without_a_true_length_is_refused(self, served):
        headers = {"Content_Type": "application/json", "Content_Length": "-1"}
        assert served.ask("POST", "/answers", b"", **headers)[0] == 411
        headers = {"Content_Type": "application/json", "Content_Length": "9" * 5000}
        assert served.ask("POST", "/answers", b"", **headers)[0] == 413

    def test_nothing_but_the_page_and_its_pictures_is_served(self, served):
        name = read_study(served.folder).lists[0][0].reference
        status, _, headers = served.ask("GET", "/?list=0")
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        connection = http.client.HTTPConnection(served.address.split("/")[2])
        connection.request("GET", f"/pictures/{name}")
        response = connection.getresponse()
        assert response.read() == (served.folder / "pictures" / name).read_bytes()
        assert response.headers["Content-Type"] == "image/png"
        for path in ("/key.json", "/study.json", "/answers.jsonl", "/pictures/../key.json", "//x",
                     "/pictures/", "/%2e%2e/key.json"):  # fmt: skip
            assert served.ask("GET", path)[0] == 404
        assert served.ask("POST", "/", b"{}", Content_Type="application/json")[0] == 404

    def test_a_browser_that_leaves_makes_no_noise(self, served, capsys):
        host, port = served.address.split("/")[2].split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /answers HTTP/1.0\r\nContent-Length: 100\r\n\r\n")
            leave_at_once = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, leave_at_once)
        assert served.ask("GET", "/?list=0")[0] == 200
        assert capsys.readouterr().err == ""

    def test_every_rater_gets_the_list_that_fewest_have(self, served):
        row = dataclasses.asdict(answer(served.folder, number=0))
        given = [served.ask("GET", "/?SESSION_ID=s&x=a%0d%0ab")[2]["Location"] for _ in range(6)]
        assert given == [f"/?SESSION_ID=s&x=a%0D%0Ab&list={number}" for number in range(6)]
        served.post({"answers": [row]})
        again = served.ask("GET", "/?rater=anna")[2]["Location"]
        assert again == "/?rater=anna&list=0"

    def test_an_address_in_use_is_a_message(self, served, studies):
        port = int(served.address.split(":")[-1].strip("/"))
        with (
            AnswerFile(studies["pair"]) as file,
            pytest.raises(UserError, match=r"cannot listen on 127.0.0.1:\d+: Address already in"),
        ):
            StudyServer(studies["pair"], file, "127.0.0.1", port)


def test_control_c_ends_serving_as_it_should_end(folder, monkeypatch, capsys):
    def stopped(server: StudyServer) -> None:
        server.append([answer(folder)])
        raise KeyboardInterrupt

    monkeypatch.setattr(StudyServer, "serve_forever", stopped)
    assert cli.main(["evaluate", "study", "serve", str(folder), "--port", "0"]) == 0
    out = capsys.readouterr().out
    assert re.match(r"serving .* at http://127\.0\.0\.1:\d+/; stop with Ctrl-C\n", out)
    assert out.endswith("stopped; saved answers: 1, raters: 1\n")


@pytest.mark.slow
def test_a_served_study_ends_cleanly_with_a_signal(folder: Path):
    command = [sys.executable, "-m", "dsd_jax", "evaluate", "study", "serve", str(folder)]
    with subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
        assert address is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(address[1]), timeout=60)
        body = json.dumps({"answers": [dataclasses.asdict(answer(folder))]})
        connection.request("POST", "/answers", body, {"Content-Type": "application/json"})
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "stopped; saved answers: 1, raters: 1\n")
    assert "Traceback" not in err
    assert len(read_answers(folder).rows) == 1
