"""Requests, answers and errors of the Images interface, as values; nothing here does any work."""

import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import TypeVar

from dsd_jax.errors import UserError, did_you_mean
from dsd_jax.infer.settings import Settings, check_seed
from dsd_jax.tasks import task_named
from dsd_jax.text.plain import check_text

__all__ = [
    "CANNOT",
    "FORMATS",
    "ImageRequest",
    "Offer",
    "RefusedError",
    "Size",
    "error_body",
    "images_body",
    "parse_request",
    "prompt_of",
    "shown_size",
]

Size = tuple[int, int]
"""Width and height of an image in pixels."""
Fields = Mapping[str, object]
T = TypeVar("T")

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
"""Formats of answers, by their names on the wire, and Pillow's names."""
_MAX_TEXT = 32_000  # characters of a prompt, as OpenAI has it
_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
# Parameters of OpenAI's that change nothing here.
_IGNORED = (
    "background", "complexity", "input_fidelity", "moderation", "quality", "response_format",
    "safety_identifier", "style", "user",
)  # fmt: skip
CANNOT = {
    "mask": "this model edits the whole image; leave the mask out",
    "markup": "this model reads no markup; leave it out",
    "svg": "images are pixels; leave svg out",
    "frame_count": "images have one frame; leave frame_count out",
    "frame_duration_ms": "images have one frame; leave frame_duration_ms out",
    "image": "give the image as a file of a multipart request to /v1/images/edits; no path and no "
    "address is opened",
}
"""Parameters of OpenAI's that ask for something else, and the message that refuses each."""
# Names of settings on the wire: OpenAI-compatible servers', diffusers' and ours.
_SETTINGS = {
    "steps": "steps",
    "num_inference_steps": "steps",
    "guidance": "guidance",
    "guidance_scale": "guidance",
    "i_guidance": "i_guidance",
    "image_guidance_scale": "i_guidance",
    "t_guidance": "t_guidance",
    "text_guidance_scale": "t_guidance",
    "negative_prompt": "negative_prompt",
    "vae_sample": "vae_sample",
}
_OWN = (
    "prompt", "model", "n", "size", "output_format", "output_compression", "stream",
    "partial_images", "save_frames", "seed", "lora", "task", "wait",
)  # fmt: skip


class RefusedError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status.
        param: Parameter that is at fault.
        code: Word by which programs tell errors apart.
        retry_after: Seconds after which the request may succeed.
    """

    def __init__(
        self,
        message: str,
        *,
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after


def error_body(error: RefusedError) -> dict[str, object]:
    """An error in OpenAI's form."""
    kind = _TYPES.get(error.status, "invalid_request_error")
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        kind = "server_error"
    return {
        "error": {
            "message": str(error), "type": kind, "param": error.param, "code": error.code
        }
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Offer:
    """The model, sizes and limits of a server.

    Attributes:
        model: Name of its model.
        sizes: Sizes of images; the first is the default.
        loras: Name and default scale of every LoRA.
        edits: Whether it takes references.
        true_guidance: Whether `i_guidance` may be above 1.
        images: Most images of a request.
        steps: Most steps of an image.
    """

    model: str
    sizes: tuple[Size, ...]
    loras: Mapping[str, float] = dataclasses.field(default_factory=dict)
    edits: bool = True
    true_guidance: bool = True
    images: int = 10
    steps: int = 100


@dataclasses.dataclass(frozen=True)
class ImageRequest:
    """A checked request.

    Attributes:
        prompt: Text that describes the image.
        seeds: Seed of each image.
        size: Size of each image.
        settings: Settings of sampling, with the size of the canvas.
        lora: Scale of every LoRA of the server.
        output_format: A key of `FORMATS`.
        quality: Quality of JPEG and WebP.
        stream: Answer with server-sent events.
        partial_images: Previews of each image in the stream.
        save_frames: Also answer with both frames of each image, side by side.
        wait: Answer when the images are done; otherwise at once, with the job.
        task: Name of the task, which is stored with the images.
    """

    prompt: str
    seeds: tuple[int, ...]
    size: Size
    settings: Settings
    lora: Mapping[str, float]
    output_format: str = "png"
    quality: int = 95
    stream: bool = False
    partial_images: int = 0
    save_frames: bool = False
    wait: bool = True
    task: str | None = None

    def preview_steps(self) -> tuple[int, ...]:
        """The steps after which the previews are made, evenly over all steps."""
        count, steps = self.partial_images, self.settings.steps
        return tuple(max(1, steps * (i + 1) // (count + 1)) for i in range(count))


def shown_size(size: Size) -> str:
    """A size as the wire has it: WIDTHxHEIGHT."""
    return f"{size[0]}x{size[1]}"


def parse_request(fields: Fields, offer: Offer, *, edit: bool) -> ImageRequest:
    """Checks the fields of a request.

    Args:
        fields: Values of JSON, or the texts of a form.
        offer: What the server offers.
        edit: Whether there is a reference.

    Raises:
        RefusedError: A field that is unknown, wrong, or asks for more than is offered.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    lora = _pop_lora(given, offer)
    _check_names(given)
    _check_fixed(given, offer)
    size = _size(given, offer)
    count = _of(given, "n", _whole, 1, 1, offer.images)
    task = _of(given, "task", _text, None)
    if task is not None:
        _in_words("task", lambda: task_named(task))
        if lora is None and task in offer.loras:
            lora = {task: offer.loras[task]}
    form = _of(given, "output_format", _text, "png")
    if form not in FORMATS:
        raise _wrong("output_format", f"must be one of {', '.join(FORMATS)}, got {form!r}")
    stream, wait = _of(given, "stream", _flag, False), _of(given, "wait", _flag, True)
    if stream and not wait:
        raise _wrong("wait", "must be true in a stream; leave out one of the two")
    previews = _of(given, "partial_images", _whole, 0, 0, 3)
    save_frames = _of(given, "save_frames", _flag, False)
    if save_frames and not edit:
        raise _wrong("save_frames", "needs a reference; give one, or leave it out")
    width, height = size
    return ImageRequest(
        prompt=prompt_of(given),
        seeds=_seeds(given, count),
        size=size,
        settings=_settings(given, offer, height, 2 * width if edit else width, edit=edit),
        lora=dict(offer.loras) if lora is None else lora,
        output_format=form,
        quality=max(1, _of(given, "output_compression", _whole, 95, 0, 100)),
        stream=stream,
        partial_images=previews if stream else 0,
        save_frames=save_frames,
        wait=wait,
        task=task,
    )


def _check_names(given: Fields) -> None:
    known = [*_OWN, *_SETTINGS, *_IGNORED]
    for name in given:
        if name in CANNOT:
            raise RefusedError(CANNOT[name], param=name)
        if name not in known:
            shown = name[:80]
            raise RefusedError(
                f"there is no parameter {shown!r}{did_you_mean(shown, known)}", param=shown
            )


def _check_fixed(given: Fields, offer: Offer) -> None:
    """Refuses values of OpenAI's parameters that would have to change something here."""
    model = given.get("model", offer.model)
    if model != offer.model:
        raise RefusedError(
            f"there is no model {model!r:.100}; this server has {offer.model!r}",
            status=HTTPStatus.NOT_FOUND,
            param="model",
            code="model_not_found",
        )
    if given.get("response_format", "b64_json") != "b64_json":
        raise _wrong("response_format", "must be b64_json; this server keeps no files to link to")
    if given.get("background") == "transparent":
        raise _wrong("background", "must be opaque; this model paints no transparency")


def prompt_of(given: Fields) -> str:
    """The checked text of a request."""
    prompt = _of(given, "prompt", _text, "")
    if not prompt.strip():
        raise _wrong("prompt", "is missing or empty; describe the image that is wanted")
    if len(prompt) > _MAX_TEXT:
        raise _wrong("prompt", f"has {len(prompt):,} characters; {_MAX_TEXT:,} are accepted")
    _in_words("prompt", lambda: check_text(prompt, "the prompt"))
    return prompt


def _size(given: Fields, offer: Offer) -> Size:
    shown = _of(given, "size", _text, "auto")
    sizes = {"auto": offer.sizes[0], **{shown_size(size): size for size in offer.sizes}}
    if shown not in sizes:
        raise _wrong("size", f"must be one of {', '.join(sizes)}, got {shown!r:.40}")
    return sizes[shown]


def _seeds(given: Fields, count: int) -> tuple[int, ...]:
    most = 2**32 - count
    first = _of(given, "seed", _whole, secrets.randbelow(most), 0, most)
    return tuple(check_seed(first + i) for i in range(count))


def _settings(given: Fields, offer: Offer, height: int, width: int, *, edit: bool) -> Settings:
    chosen = Settings(height=height, width=width)
    used: dict[str, str] = {}
    for name, own in _SETTINGS.items():
        if name not in given:
            continue
        if own in used:
            raise _wrong(name, f"and {used[own]} are the same; give one of them")
        used[own] = name
        value: object
        match own:
            case "steps":
                value = _of(given, name, _whole, 0, 1, offer.steps)
            case "negative_prompt":
                value = _of(given, name, _text, "")[:_MAX_TEXT]
            case "vae_sample":
                value = _of(given, name, _flag, True)
            case _:
                value = _of(given, name, _number, 0.0, 0.0, 100.0)
        chosen = dataclasses.replace(chosen, **{own: value})  # type: ignore[arg-type]
    if chosen.true_guidance and not edit:
        raise _wrong(used["i_guidance"], "needs a reference; give one, or leave it at 1")
    if chosen.true_guidance and not offer.true_guidance:
        raise _wrong(used["i_guidance"], "must be at most 1: this server has no true guidance")
    return chosen


def _pop_lora(given: dict[str, object], offer: Offer) -> dict[str, float] | None:
    """Scales by name, from a name, a list of names, or names with scales; None if not given.

    Forms spell lists as `lora[]` and objects as `lora[name]`, as the openai client does.
    """
    named: dict[str, object] = {}
    for key in [key for key in given if key == "lora" or key.startswith("lora[")]:
        value = given.pop(key)
        if isinstance(value, Mapping):
            named.update(value)
        elif key not in ("lora", "lora[]"):
            named[key.removeprefix("lora[").removesuffix("]")] = value
        else:
            for name in value if isinstance(value, list | tuple) else [value]:
                named[_text("lora", name)] = None
        if not named:
            return {}
    if not named:
        return None
    for name in named:
        if name not in offer.loras:
            hint = did_you_mean(name, offer.loras) or f"; it has {', '.join(offer.loras) or 'none'}"
            raise _wrong("lora", f"{name[:80]!r} is not on this server{hint}")
    return {
        name: offer.loras[name] if scale is None else _number(f"lora[{name}]", scale, -10.0, 10.0)
        for name, scale in named.items()
    }


# Values of JSON, or of a form, where every value is a text.


def _of(given: Fields, name: str, read: Callable[..., T], default: T, *bounds: float) -> T:
    return read(name, given[name], *bounds) if name in given else default


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(name, f"must be text, got {_kind(value)}")
    return value


def _whole(name: str, value: object, least: int, most: int) -> int:
    number = value
    if isinstance(value, str) and len(value) <= 20 and value.isascii() and value.isdecimal():
        number = int(value)
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
        raise _wrong(name, f"must be a whole number from {least} to {most}, got {_kind(value)}")
    return number


def _number(name: str, value: object, least: float, most: float) -> float:
    number = value
    if isinstance(value, str) and len(value) <= 40:
        try:
            number = float(value)
        except ValueError:
            number = None
    numeric = isinstance(number, int | float) and not isinstance(number, bool)
    if not numeric or not least <= number <= most:  # type: ignore[operator]
        raise _wrong(name, f"must be a number from {least:g} to {most:g}, got {_kind(value)}")
    return float(number)  # type: ignore[arg-type]


def _flag(name: str, value: object) -> bool:
    named = {"true": True, "false": False, "1": True, "0": False}
    found = named.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise _wrong(name, f"must be true or false, got {_kind(value)}")
    return found


def _kind(value: object) -> str:
    return f"{value!r:.60}" if isinstance(value, str | int | float) else type(value).__name__


def _wrong(name: str, reason: str) -> RefusedError:
    return RefusedError(f"{name} {reason}", param=name)


def _in_words(name: str, check: Callable[[], object]) -> None:
    try:
        check()
    except UserError as error:
        raise RefusedError(str(error), param=name) from None


def images_body(
    request: ImageRequest, encoded: Sequence[Mapping[str, str]], job: str, created: int
) -> dict[str, object]:
    """The answer with the images of a request, each as its fields in base64."""
    return {
        "created": created,
        "background": "opaque",
        "output_format": request.output_format,
        "size": shown_size(request.size),
        "data": [{**data, "seed": seed} for data, seed in zip(encoded, request.seeds, strict=True)],
        "job": job,
    }
