"""The routes, driven by the official client, over an engine without a model."""

import asyncio
import base64
import io
import json
import random
import struct
import threading
import time
import zlib

import httpx2
import openai
import pytest
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.infer.serve import app
from dsd_jax.infer.serve.app import create_app
from dsd_jax.infer.serve.guard import Guard
from dsd_jax.infer.serve.uploads import Uploads
from tests.infer.serve.conftest import BASE


def opened(data: str | None) -> Image.Image:
    assert data is not None
    return Image.open(io.BytesIO(base64.b64decode(data)))


def shade(image: Image.Image) -> int:
    pixel = image.convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return int(pixel[0])


def ask(client: openai.AsyncOpenAI, **kw):
    extra = {"seed": 7, "steps": 3} | kw.pop("extra", {})
    return client.images.generate(prompt="a star", extra_body=extra, **kw)


def error_of(response) -> dict:
    made = json.loads(response.content)
    assert isinstance(made["error"]["message"], str)
    assert set(made["error"]) == {"message", "type", "param", "code"}
    return made["error"]


def test_images_of_a_text(client, engine):
    async def main():
        return await ask(client, n=2, size="64x32", model="dsd")

    made = asyncio.run(main())
    images = [opened(each.b64_json) for each in made.data]
    assert [(image.size, shade(image)) for image in images] == [((64, 32), 7), ((64, 32), 8)]
    assert [each.seed for each in made.data] == [7, 8]
    assert (made.output_format, made.size) == ("png", "64x32")
    assert engine.frames == [None]
    assert json.loads(images[0].info["parameters"]) == {
        "seed": 7, "text": "a star",
    }  # fmt: skip


def test_an_edit_has_its_reference_and_its_extras(client, engine, reference):
    async def main():
        extra = {"seed": 9, "steps": 4, "image_guidance_scale": 1.5, "lora": {"style": 0.25}}
        return await client.images.edit(
            image=("cat.png", reference), prompt="a cat", output_format="jpeg", extra_body=extra
        )

    made = asyncio.run(main())
    assert opened(made.data[0].b64_json).format == "JPEG"
    [frame], [request] = engine.frames, engine.requests
    assert frame is not None
    assert (frame.image.size, frame.image.getpixel((0, 0))) == ((32, 32), (0, 128, 0))
    assert (request.settings.i_guidance, request.lora, request.seeds) == (
        1.5,
        {"style": 0.25},
        (9,),
    )


def test_both_frames_come_beside_the_image(client, reference):
    async def main():
        extra = {"seed": 7, "steps": 2, "save_frames": True}
        return await client.images.edit(image=reference, prompt="a cat", extra_body=extra)

    [made] = asyncio.run(main()).data
    frames = opened(made.frames_b64_json)
    assert (frames.size, frames.getpixel((0, 0)), frames.getpixel((32, 0))) == (
        (64, 32), (0, 0, 255), (7, 0, 0),
    )  # fmt: skip
    assert frames.info["parameters"] == opened(made.b64_json).info["parameters"]


@pytest.mark.parametrize("edit", [True, False])
def test_a_stream_has_previews_and_ends_with_the_image(client, reference, edit):
    async def main():
        own = {"prompt": "a", "stream": True, "partial_images": 2}
        extra = {"seed": 7, "steps": 6}
        if edit:
            stream = await client.images.edit(image=reference, extra_body=extra, **own)
        else:
            stream = await client.images.generate(extra_body=extra, **own)
        return [event async for event in stream]

    events = asyncio.run(main())
    kind = "image_edit" if edit else "image_generation"
    assert [event.type for event in events] == [f"{kind}.partial_image"] * 2 + [f"{kind}.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert shade(opened(events[-1].b64_json)) == 7


def test_models_and_probes_and_metrics(client, http):
    async def main():
        await ask(client)
        [model] = [each async for each in client.models.list()]
        probes = [(await http.get(f"http://127.0.0.1/{name}")) for name in ("health", "ready")]
        return model, probes, (await http.get("http://127.0.0.1/metrics")).text

    model, probes, metrics = asyncio.run(main())
    assert (model.id, model.sizes, model.loras) == (
        "dsd", ["32x32", "64x32"], {"light": 1.0, "style": 0.5},
    )  # fmt: skip
    assert (model.true_guidance, model.max_images, model.max_steps) == (True, 10, 100)
    assert [probe.json() for probe in probes] == [{"status": "ok"}] * 2
    assert "dsd_images_total 1.0" in metrics
    assert "dsd_batch_images_count 3.0" in metrics


def test_requests_under_way_share_their_steps(client, engine, runner):
    engine.gate = threading.Semaphore(0)

    async def main():
        first = asyncio.ensure_future(ask(client, extra={"seed": 1}))
        await asyncio.to_thread(engine.begun.acquire)  # the first step of the first
        second = asyncio.ensure_future(ask(client, extra={"seed": 2, "guidance": 1.0}))
        while len(runner.tasks) < 2:
            await asyncio.sleep(0)
        engine.gate.release(100)
        await asyncio.gather(first, second)

    asyncio.run(main())
    assert engine.batches == [(1,), (1, 2), (1, 2), (2,)]


def test_a_full_queue_says_when_to_come_back(client, http, engine):
    engine.gate = threading.Semaphore(0)

    async def body():
        yield pytest.fail("the body was read")

    async def main():
        extra = {"wait": False, "n": 2}
        jobs = [await http.post(f"{BASE}/images/generations", json=TEXT | extra)]
        await asyncio.to_thread(engine.begun.acquire)
        jobs += [await http.post(f"{BASE}/images/generations", json=TEXT | extra) for _ in range(3)]
        kind = {"content-type": "application/json"}
        return [*jobs, await http.post(f"{BASE}/images/generations", content=body(), headers=kind)]

    *taken, refused, unread = asyncio.run(main())
    assert unread.status_code == 429
    assert [job.status_code for job in taken] == [202] * 3
    assert [job.json()["position"] for job in taken] == [0, 0, 2]
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.json()["error"]["code"] == "queue_full"


TEXT = {"prompt": "a star", "steps": 3, "seed": 7}


def test_a_job_can_be_followed_and_fetched(http, engine):
    engine.gate = threading.Semaphore(0)

    async def main():
        made = await http.post(f"{BASE}/images/generations", json=TEXT | {"wait": False})
        place = f"http://127.0.0.1{made.headers['location']}"
        await asyncio.to_thread(engine.begun.acquire)
        early = (await http.get(place)).json()
        engine.gate.release(100)
        while (late := (await http.get(place)).json())["status"] == "running":
            await asyncio.sleep(0.01)
        return early, late

    early, late = asyncio.run(main())
    assert (early["status"], early["step"], early["steps"], early["result"]) == (
        "running", 0, 3, None,
    )  # fmt: skip
    assert (late["status"], late["step"]) == ("completed", 3)
    assert shade(opened(late["result"]["data"][0]["b64_json"])) == 7


def test_a_cancelled_job_frees_its_place_within_a_step(client, http, engine, runner):
    engine.gate = threading.Semaphore(0)

    async def main():
        made = await http.post(f"{BASE}/images/generations", json=TEXT | {"wait": False, "n": 2})
        place = f"http://127.0.0.1{made.headers['location']}"
        await asyncio.to_thread(engine.begun.acquire)
        other = asyncio.ensure_future(ask(client, extra={"seed": 50, "steps": 2}))
        while len(runner.tasks) < 2:
            await asyncio.sleep(0)
        cancelled = (await http.delete(place)).json()
        engine.gate.release(100)
        await other
        return cancelled, await http.get("http://127.0.0.1/v1/jobs/unknown")

    cancelled, unknown = asyncio.run(main())
    assert cancelled["status"] == "cancelled"
    assert engine.batches == [(7, 8), (50,), (50,)]
    assert unknown.status_code == 404


def test_results_are_forgotten_after_ten_minutes_or_64_newer_jobs(http, runner, monkeypatch):
    async def main():
        url = f"{BASE}/images/generations"
        short = TEXT | {"steps": 1}
        old = (await http.post(url, json=short)).json()["job"]
        for _ in range(64):
            await http.post(url, json=short)
        newest = runner.tasks[-1]
        kept = [runner.task(old), runner.task(newest.id)]
        newest.settled -= 601
        return kept, newest, runner.task(newest.id)

    kept, newest, late = asyncio.run(main())
    assert kept == [None, newest]
    assert late is None


def test_two_pictures_are_decoded_at_a_time(http, reference, monkeypatch):
    inside, most = [], []
    decode = app.open_frame

    def counting(*given):
        inside.append(given)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return decode(*given)

    monkeypatch.setattr(app, "open_frame", counting)

    async def main():
        asked = {"data": TEXT | {"wait": "false"}, "files": {"image": reference}}
        posts = (http.post(f"{BASE}/images/edits", **asked) for _ in range(4))
        return await asyncio.gather(*posts)

    assert [each.status_code for each in asyncio.run(main())] == [202] * 4
    assert len(most) == 4
    assert max(most) <= 2


@pytest.mark.parametrize("at", ["open", "step", "finish"])
def test_a_device_that_fails_three_times_in_a_row_is_out_of_order(
    client, http, engine, monkeypatch, at
):
    def failing(*args, **kw):
        raise failure

    monkeypatch.setattr(engine, at, failing)

    async def main():
        with pytest.raises((openai.InternalServerError, openai.BadRequestError)) as caught:
            await ask(client)
        probes = [await http.get(f"http://127.0.0.1/{name}") for name in ("health", "ready")]
        return str(caught.value), [probe.status_code for probe in probes], probes[1].json()

    failure: Exception = UserError("values that are not finite")
    for _ in range(3):  # the request's fault
        assert asyncio.run(main())[1] == [200, 200]
    failure = RuntimeError("no device")
    seen = [asyncio.run(main()) for _ in range(4)]
    assert [status for _, status, _ in seen] == [[200, 200]] * 2 + [[503, 503]] * 2
    assert seen[3][0].endswith("the server is out of order; try again later")
    assert seen[3][2] == {"status": "out of order"}


def test_a_client_that_leaves_cancels_its_request(client, engine, runner):
    engine.gate = threading.Semaphore(0)

    async def main():
        asked = asyncio.ensure_future(ask(client, n=2))
        await asyncio.to_thread(engine.begun.acquire)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        engine.gate.release(100)
        await ask(client, extra={"seed": 3, "steps": 1})

    asyncio.run(main())
    assert engine.batches == [(7, 8), (3,)]
    assert not runner.busy


def test_a_device_error_fails_its_batch_and_no_other(client, engine):
    engine.fail_step = RuntimeError("RESOURCE_EXHAUSTED /secret/place")

    async def main():
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(client)
        return caught.value, await ask(client)

    error, later = asyncio.run(main())
    assert "the device failed while it made this image; try again" in str(error)
    assert "secret" not in str(error)
    assert len(later.data) == 1


def test_an_error_of_the_request_is_told_in_words(client, engine):
    async def main():
        with pytest.raises(openai.BadRequestError) as early:
            await ask(client, extra={"steps": 99})
        engine.fail_step = UserError("values that are not finite")
        with pytest.raises(openai.BadRequestError) as late:
            await ask(client)
        engine.fail_step = UserError("values that are not finite")
        stream = await ask(client, stream=True)
        with pytest.raises(openai.APIError, match="not finite"):
            async for _ in stream:
                pass
        return early.value, late.value

    early, late = asyncio.run(main())
    assert "the pipeline cannot make 99 steps" in str(early)
    assert "values that are not finite" in str(late)


def test_a_stopping_server_refuses_new_requests_and_answers_the_others(
    client, http, engine, runner
):
    engine.gate = threading.Semaphore(0)

    async def main():
        asked = asyncio.ensure_future(ask(client))
        await asyncio.to_thread(engine.begun.acquire)
        runner.draining = True
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(client)
        ready = await http.get("http://127.0.0.1/ready")
        assert runner.busy
        engine.gate.release(100)
        return caught.value, ready, await asked

    refused, ready, answered = asyncio.run(main())
    assert (refused.status_code, ready.status_code) == (503, 503)
    assert refused.response.headers["retry-after"] == "10"
    assert len(answered.data) == 1
    assert not runner.busy


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
