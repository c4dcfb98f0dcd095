"""Requests that the routes refuse: keys, other sites, uploads, damaged bodies, other addresses."""

import asyncio
import json
import random
import struct
import zlib

import httpx2
import pytest

from dsd_jax.errors import UserError
from dsd_jax.infer.serve.app import create_app
from dsd_jax.infer.serve.guard import Guard
from dsd_jax.infer.serve.uploads import Uploads
from tests.infer.serve.conftest import BASE


def error_of(response) -> dict:
    made = json.loads(response.content)
    assert isinstance(made["error"]["message"], str)
    assert set(made["error"]) == {"message", "type", "param", "code"}
    return made["error"]


def with_guard(runner, http, guard: Guard, uploads: Uploads = Uploads()):
    transport = httpx2.ASGITransport(create_app(runner, guard, uploads))
    return httpx2.AsyncClient(transport=transport, base_url=BASE)


def test_another_host_needs_a_key(runner, http):
    with pytest.raises(UserError, match=r"others can reach 0\.0\.0\.0, so the server needs a key"):
        Guard.of(None, "0.0.0.0")
    guarded = with_guard(runner, http, Guard.of("correct-horse", "0.0.0.0"))

    async def main():
        keys = (None, "wrong", "correct-horse")
        headers = [{"authorization": f"Bearer {key}"} if key else {} for key in keys]
        models = [await guarded.get(f"{BASE}/models", headers=each) for each in headers]
        return models, await guarded.get("http://gpu-7.example/health")

    models, health = asyncio.run(main())
    assert [each.status_code for each in models] == [401, 401, 200]
    assert b'dsd_refusals_total{status="401"} 2.0' in runner.metrics.text()
    assert models[0].json()["error"]["code"] == "invalid_api_key"
    assert health.status_code == 200


def test_pages_of_other_sites_cannot_ask(http):
    async def main():
        names = {"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}
        return [await http.get(f"{BASE}/models", headers=each) for each in names]

    assert [each.status_code for each in asyncio.run(main())] == [403] * 3


def test_uploads_are_limited_before_they_are_read(runner, http, reference):
    small = with_guard(runner, http, Guard(), Uploads(size=2_000))
    hasty = with_guard(runner, http, Guard(), Uploads(seconds=0.05))

    async def slow():
        yield b"{"
        await asyncio.sleep(5)

    async def long():
        for _ in range(100):
            yield b" " * 1_000

    async def main():
        url = f"{BASE}/images/generations"
        kind = {"content-type": "application/json"}
        return [
            await small.post(url, content=b"x" * 2_001, headers=kind),
            await small.post(url, content=long(), headers=kind),
            await hasty.post(url, content=slow(), headers=kind),
            await small.post(url, content=b"", headers=kind | {"content-length": "-1"}),
            await small.post(url, content=b"{}", headers={"content-type": "text/plain"}),
        ]

    answers = asyncio.run(main())
    assert [each.status_code for each in answers] == [413, 413, 408, 400, 415]
    assert "larger than 2,000 bytes" in answers[0].json()["error"]["message"]


def test_slow_uploads_keep_nobody_waiting_and_all_together_are_limited(runner, http):
    small = with_guard(runner, http, Guard(), Uploads(together=100, seconds=60))
    url, kind = f"{BASE}/images/generations", {"content-type": "application/json"}

    async def main():
        arrived, more = asyncio.Semaphore(0), asyncio.Event()

        async def slow():
            yield b" " * 5
            arrived.release()
            await more.wait()
            yield b'{"prompt": "a"}'

        waiting = [asyncio.ensure_future(small.post(url, content=slow(), headers=kind))]
        waiting += [asyncio.ensure_future(small.post(url, content=slow(), headers=kind))]
        for _ in waiting:
            await arrived.acquire()
        quick = await small.post(url, json={"prompt": "a"})
        large = await small.post(url, json={"prompt": "a" * 90})
        more.set()
        return [quick, large, *await asyncio.gather(*waiting)]

    answers = asyncio.run(main())
    assert [each.status_code for each in answers] == [200, 429, 200, 200]
    assert "too many uploads arrive together" in answers[1].json()["error"]["message"]


def test_an_edit_takes_exactly_one_uploaded_picture(http, reference):
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + reference[24:29]
    bomb = reference[:12] + header + struct.pack(">I", zlib.crc32(header)) + reference[33:]
    url, text = f"{BASE}/images/edits", {"prompt": "a"}

    async def main():
        return [
            await http.post(url, data=text | {"image": "/etc/passwd"}, files={"x": b""}),
            await http.post(url, data=text | {"image": "file:///etc/passwd"}, files={"image": b""}),
            await http.post(url, data=text, files=[("image", reference), ("image[]", reference)]),
            await http.post(url, data=text, files={"image": b"not a picture"}),
            await http.post(url, data=text, files={"image": bomb}),
            await http.post(url, data=text, files={"mask": reference}),
            await http.post(url, json=text),
        ]

    answers = asyncio.run(main())
    assert [each.status_code for each in answers] == [400] * 6 + [415]
    said = [each.json()["error"]["message"] for each in answers]
    for words, message in zip(
        (
            "x must not be a file",
            "no path and no address is opened",
            "2 images were given; this model takes exactly one reference",
            "not a picture that can be read",
            "pixels",
            "this model edits the whole image; leave the mask out",
            "multipart/form-data",
        ),
        said,
        strict=True,
    ):
        assert words in message


def test_damaged_bodies_are_refused_and_nothing_breaks(http, runner, reference):
    rng = random.Random(0)
    boundary = b"XX"
    form = (
        b"".join(
            b'--XX\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % part
            for part in [(b"prompt", b"", b"a"), (b"image", b'; filename="a.png"', reference[:60])]
        )
        + b"--XX--\r\n"
    )
    json_text = json.dumps({"prompt": "a", "n": 1, "lora": {"style": 1}}).encode()

    def damaged(body: bytes) -> bytes:
        made = bytearray(body)
        for _ in range(rng.randrange(1, 6)):
            place = rng.randrange(len(made))
            made[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        return bytes(made[: rng.randrange(len(made) + 1)])

    async def main():
        kinds = {
            "edits": (form, f"multipart/form-data; boundary={boundary.decode()}"),
            "generations": (json_text, "application/json"),
        }
        seen = set()
        for number in range(100):
            name = ("edits", "generations")[number % 2]
            body, kind = kinds[name]
            given = {"content-type": kind}
            answer = await http.post(f"{BASE}/images/{name}", content=damaged(body), headers=given)
            seen.add(answer.status_code)
            if answer.status_code != 200:
                error_of(answer)
        return seen, await http.post(f"{BASE}/images/{name}", json={"prompt": "a"})

    seen, last = asyncio.run(main())
    assert seen <= {200, 400, 404}
    assert last.status_code == 200


def test_other_addresses_are_refused_in_the_same_form(http):
    async def main():
        return await http.get(f"{BASE}/chat"), await http.get(f"{BASE}/images/edits")

    answers = asyncio.run(main())
    assert [each.status_code for each in answers] == [404, 405]
    said = [error_of(answer)["message"] for answer in answers]
    assert [words.partition(";")[0] for words in said] == [
        "this server has no GET /v1/chat", "this server has no GET /v1/images/edits",
    ]  # fmt: skip
