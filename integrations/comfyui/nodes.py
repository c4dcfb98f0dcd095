"""The nodes."""

import dataclasses

import comfy.model_management
import torch
from comfy_api.latest import ComfyAPI, ComfyExtension, io

from .client import (
    Event,
    Made,
    Preview,
    Question,
    Server,
    ServerError,
    default_address,
)
from .following import Request, Watcher, answered, made_all
from .pictures import picture, reference_png, stacked
from .replacements import REPLACEMENTS

__all__ = ["Extension"]

_CATEGORY = "DSD"
_LIGHT = "warm light from the left"
_PANELS = 24
_MOST_SEED = 2**32 - 1 - _PANELS
_API = ComfyAPI()
_Model = io.Custom("DSD_MODEL")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Widgets that all nodes with images share, by the names of the old ComfyUI-DSD pack."""

    negative_prompt: str
    seed: int
    guidance_scale: float
    image_guidance_scale: float
    text_guidance_scale: float
    num_inference_steps: int
    size: str
    loras: str
    dsd_model: Server = dataclasses.field(default_factory=Server)

    def request(
        self, prompt: str, reference: bytes, *, images: int = 1, shift: int = 0, task: str = ""
    ) -> Request:
        """A request with these settings.

        Args:
            prompt: The text.
            reference: The reference as PNG.
            images: Number of images.
            shift: What is added to the seed.
            task: Name of the task, if it has one.
        """
        fields = {
            "prompt": prompt,
            "n": str(images),
            "seed": str(self.seed + shift),
            "size": self.size.strip() or "auto",
            "num_inference_steps": str(self.num_inference_steps),
            "guidance_scale": str(self.guidance_scale),
            "image_guidance_scale": str(self.image_guidance_scale),
            "text_guidance_scale": str(self.text_guidance_scale),
            "negative_prompt": self.negative_prompt,
        }
        if task:
            fields["task"] = task
        for each in filter(None, map(str.strip, self.loras.split(","))):
            name, _, scale = each.partition(":")
            fields[f"lora[{name.strip()}]"] = scale.strip() or "1"
        return Request(fields, reference, images, self.num_inference_steps)


def _model_input() -> io.Input:
    return _Model.Input(
        "dsd_model",
        display_name="model",
        optional=True,
        tooltip="A DSD Server. Without one: the first of DSD_SERVERS, or else this machine.",
    )


def _settings() -> list[io.Input]:
    """Inputs of `Settings`."""
    return [
        io.String.Input(
            "negative_prompt",
            default="",
            multiline=True,
            tooltip="What images must not show. Needs an image guidance scale above 1.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=_MOST_SEED,
            control_after_generate=True,
            tooltip="The same seed gives the same image. Further images have the next seeds.",
        ),
        _scale("guidance_scale", 3.5, "How closely to follow the text."),
        _scale(
            "image_guidance_scale",
            1.0,
            "Above 1, images keep more of the reference and take up to three times as long.",
        ),
        _scale(
            "text_guidance_scale",
            1.0,
            "How closely to follow the text if the image guidance scale is above 1.",
        ),
        io.Int.Input(
            "num_inference_steps",
            default=28,
            min=1,
            max=100,
            tooltip="More steps take longer and give finer images.",
        ),
        io.String.Input(
            "size",
            default="auto",
            tooltip="One of the server's sizes, such as 512x512; auto takes its first.",
        ),
        io.String.Input(
            "loras",
            default="",
            tooltip="LoRAs of the server with their scales, such as style:0.8, light:1. Empty "
            "keeps the server's own scales.",
            advanced=True,
        ),
        _model_input(),
    ]


def _scale(name: str, default: float, tooltip: str) -> io.Input:
    return io.Float.Input(
        name, default=default, min=0.0, max=20.0, step=0.1, round=0.001, tooltip=tooltip
    )


def _text(name: str, tooltip: str, default: str = "") -> io.Input:
    return io.String.Input(name, default=default, multiline=True, tooltip=tooltip)


def _image_input(what: str) -> io.Input:
    tooltip = f"{what}. The server crops it to the shape of the images."
    return io.Image.Input("image", tooltip=tooltip)


def _images_input() -> io.Input:
    return io.Int.Input("images", default=1, min=1, max=10, tooltip="How many images to make.")


def _schema(node: str, description: str, inputs: list[io.Input]) -> io.Schema:
    """The schema of a node that makes images: its own inputs, then those of `Settings`."""
    return io.Schema(
        node_id=f"DSD{node}",
        display_name=f"DSD {node}",
        category=_CATEGORY,
        description=description,
        inputs=[*inputs, *_settings()],
        outputs=[
            io.Image.Output("made", display_name="image"),
            io.Image.Output("reference", display_name="reference"),
            io.Int.Output("first_seed", display_name="seed"),
        ],
    )


async def _show(done: int, steps: int, event: Event) -> None:
    shown = picture(event.png) if isinstance(event, Preview | Made) else None
    await _API.execution.set_progress(done, steps, preview_image=shown)


_WATCHER = Watcher(_show, comfy.model_management.throw_exception_if_processing_interrupted)


async def _made(image: torch.Tensor, settings: Settings, requests: list[Request]) -> io.NodeOutput:
    made = await made_all(settings.dsd_model, requests, _WATCHER)
    return io.NodeOutput(stacked(each.png for each in made), image, settings.seed)


class ServerNode(io.ComfyNode):
    """Names a server."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DSDServer",
            display_name="DSD Server",
            category=_CATEGORY,
            description="Names a server that was started with `dsd serve`.",
            inputs=[
                io.String.Input(
                    "address",
                    default=default_address(),
                    socketless=True,
                    tooltip="An address on this machine, or one that the environment variable "
                    "DSD_SERVERS lists.",
                ),
                io.String.Input(
                    "key_env",
                    default=Server.key_env,
                    socketless=True,
                    tooltip="Name of the environment variable with the key, if the server has one. "
                    "Never put the key itself here: it would be saved with your images.",
                    advanced=True,
                ),
            ],
            outputs=[_Model.Output("dsd_model", display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, address: str, key_env: str) -> bool | str:
        try:
            Server(address.strip(), key_env.strip())
        except ServerError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, address: str, key_env: str) -> io.NodeOutput:
        return io.NodeOutput(Server(address.strip(), key_env.strip()))


class Customise(io.ComfyNode):
    """Puts the subject of a reference into another scene."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "Customise",
            "Makes images of the subject of a reference in a scene that you describe.",
            [
                _image_input("The reference"),
                _text("prompt", "The image that you want: this character playing football."),
                _images_input(),
            ],
        )

    @classmethod
    async def execute(
        cls, image: torch.Tensor, prompt: str, images: int, **widgets: object
    ) -> io.NodeOutput:
        settings = Settings(**widgets)  # type: ignore[arg-type]
        request = settings.request(prompt, reference_png(image), images=images)
        return await _made(image, settings, [request])


class Relight(io.ComfyNode):
    """Shows a scene under another light."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "Relight",
            "Shows the scene of a picture under another light. The server needs a "
            "model for relighting, or a LoRA with the name relight.",
            [
                _image_input("The picture"),
                io.String.Input(
                    "light",
                    default=_LIGHT,
                    tooltip="The light, such as: from behind with a soft lamp at night. If the "
                    "server does not know a word, its message names others.",
                ),
                _text("scene", "What the picture shows. May be empty."),
                _images_input(),
            ],
        )

    @classmethod
    async def execute(
        cls, image: torch.Tensor, light: str, scene: str, images: int, **widgets: object
    ) -> io.NodeOutput:
        if not light.strip():
            raise ValueError(f"say something about the light, such as: {_LIGHT}")
        settings = Settings(**widgets)  # type: ignore[arg-type]
        words = Question.light(settings.dsd_model, light.strip())
        instruction, addition = await answered(words, _WATCHER)
        prompt = scene.strip() + addition if scene.strip() else instruction
        request = settings.request(prompt, reference_png(image), images=images, task="relight")
        return await _made(image, settings, [request])


class Depth(io.ComfyNode):
    """Makes a photograph of a depth map."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "Depth",
            "Makes images of a depth map, whose near parts are bright. The server "
            "needs a model for depth, or a LoRA with the name depth.",
            [
                _image_input("The depth map"),
                _text("prompt", "The image that you want."),
                _images_input(),
            ],
        )

    @classmethod
    async def execute(
        cls, image: torch.Tensor, prompt: str, images: int, **widgets: object
    ) -> io.NodeOutput:
        settings = Settings(**widgets)  # type: ignore[arg-type]
        request = settings.request(prompt, reference_png(image), images=images, task="depth")
        return await _made(image, settings, [request])


class Enhance(io.ComfyNode):
    """Adds the details of a reference to a text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DSDEnhance",
            display_name="DSD Enhance",
            category=_CATEGORY,
            description="Adds what the reference shows to your text, by the vision model of the "
            "server. The key of that model stays on the server.",
            inputs=[
                io.Image.Input("image", tooltip="The reference."),
                _text("prompt", "Your text. Its words are kept."),
                _model_input(),
            ],
            outputs=[io.String.Output("enhanced_prompt", display_name="prompt")],
        )

    @classmethod
    async def execute(
        cls, image: torch.Tensor, prompt: str, dsd_model: Server | None = None
    ) -> io.NodeOutput:
        question = Question.enhancement(dsd_model or Server(), prompt, reference_png(image))
        return io.NodeOutput(*await answered(question, _WATCHER))


class Story(io.ComfyNode):
    """Makes the panels of a story about one hero."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "Story",
            "Makes one image for each line, all of the subject of the reference. The "
            "server makes them at the same time.",
            [
                _image_input("The hero"),
                _text("panels", f"One panel on each line, {_PANELS} at most."),
                io.String.Input("style", default="", tooltip="Words for the end of each line."),
            ],
        )

    @classmethod
    async def execute(
        cls, image: torch.Tensor, panels: str, style: str, **widgets: object
    ) -> io.NodeOutput:
        lines = [line.strip() for line in panels.splitlines() if line.strip()]
        if not 1 <= len(lines) <= _PANELS:
            raise ValueError(
                f"a story has 1 to {_PANELS} panels, got {len(lines)}; write one on each line"
            )
        settings, reference = Settings(**widgets), reference_png(image)  # type: ignore[arg-type]
        requests = [
            settings.request(", ".join(filter(None, (line, style.strip()))), reference, shift=i)
            for i, line in enumerate(lines)
        ]
        return await _made(image, settings, requests)


class Extension(ComfyExtension):
    """The pack."""

    async def on_load(self) -> None:
        for each in REPLACEMENTS:
            await _API.node_replacement.register(io.NodeReplace(**dataclasses.asdict(each)))

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [ServerNode, Customise, Relight, Depth, Enhance, Story]
