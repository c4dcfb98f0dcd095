"""The routes, driven by the official client, over an engine without a model."""

import asyncio
import base64
import io
import json
import threading
import time

import openai
import pytest
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.infer.serve import app
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
