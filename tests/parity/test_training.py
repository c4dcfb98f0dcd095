"""Losses, gradients and parameters after ten steps, against PyTorch, PEFT and torch.optim.

The noise and the times are those that our step draws; everything else is written out in PyTorch.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.torch
import torch
from diffusers import FluxTransformer2DModel
from flax import nnx
from peft import LoraConfig as PeftConfig

from dsd_jax.convert.flux.diffusers import flux_diffusers
from dsd_jax.convert.lora.read import read_lora
from dsd_jax.flow import Schedule
from dsd_jax.layers import JoinedLinear, Linear
from dsd_jax.lora import Adapter, LoraConfig
from dsd_jax.train.config import FlowConfig, OptimizerConfig, TrainConfig
from dsd_jax.train.model import Start, first_state, make_trainee
from dsd_jax.train.objective import Customise, EncodedBatch
from dsd_jax.train.optimizer import make_optimizer
from dsd_jax.train.state import Split
from dsd_jax.train.step import Metrics, make_step
from dsd_jax.weights import WeightSource
from tests.parity.compare import StateDict, assert_close, randomise, relative_error
from tests.tiny_flux import CANVAS, TINY
from tests.tiny_training import flat, in_memory, make_batch, one_device

GRADIENT, TEN_STEPS = 1e-4, 1e-3  # relative
CONFIG = dataclasses.replace(TINY, mlp_ratio=4.0)  # the only ratio that diffusers has
RANK, ALPHA = 4, 8.0
TARGETS = {
    "attention": r".*attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)",
    "attention+ff": (
        r".*(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|net\.0\.proj|net\.2|proj_mlp"
        r"|(?<!^)proj_out)"
    ),
}
RECIPE = TrainConfig(
    steps=10,
    batch_size=8,
    seed=5,
    flow=FlowConfig(target_weight=3.0),
    optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.1, b1=0.8, b2=0.95, clip=0.5),
    base_dtype="float32",
    remat="full",
)
# Hands the gradients of a step back as its state, and changes nothing.
GRADIENTS = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, _state, _params: (jax.tree.map(jnp.zeros_like, grads), grads),
)


# PyTorch


def make_reference() -> FluxTransformer2DModel:
    """diffusers' transformer with the condition embedding, which its call adds by itself."""
    model = FluxTransformer2DModel(
        in_channels=CONFIG.in_channels,
        num_layers=CONFIG.double_depth,
        num_single_layers=CONFIG.single_depth,
        attention_head_dim=CONFIG.head_dim,
        num_attention_heads=CONFIG.num_heads,
        joint_attention_dim=CONFIG.txt_width,
        pooled_projection_dim=CONFIG.vec_width,
        guidance_embeds=CONFIG.guidance_embed,
        axes_dims_rope=CONFIG.axes_dim,
    )
    model.c_embedder = torch.nn.Linear(CONFIG.in_channels, CONFIG.width)
    randomise(model)
    return model


def add_lora(model: FluxTransformer2DModel, targets: str) -> None:
    """Random factors by PEFT; they and the condition embedding are what is trained."""
    torch.manual_seed(2)
    config = PeftConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=TARGETS[targets], init_lora_weights=False
    )
    model.requires_grad_(False)
    model.add_adapter(config)
    model.c_embedder.requires_grad_(True)


def tensor(x: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(x))


def torch_loss(
    model: FluxTransformer2DModel, batch: EncodedBatch, step: int, flow: FlowConfig
) -> torch.Tensor:
    """Loss for the draws of our step `step`."""
    key = jax.random.fold_in(jax.random.key(RECIPE.seed), step)
    noise, t = map(tensor, Customise(flow, Schedule(), CANVAS).draw(key, batch.x_0))
    x_0, drop_text, drop_image = map(tensor, (batch.x_0, batch.drop_text, batch.drop_image))
    txt = torch.where(drop_text[:, None, None], tensor(batch.null_txt), tensor(batch.txt))
    vec = torch.where(drop_text[:, None], tensor(batch.null_vec), tensor(batch.vec))
    condition = tensor(batch.img_cond) * ~drop_image[:, None, None]
    hook = model.x_embedder.register_forward_hook(
        lambda module, args, embedded: embedded + model.c_embedder(condition)
    )
    predicted = model(
        hidden_states=(1 - t)[:, None, None] * x_0 + t[:, None, None] * noise,
        timestep=t,
        guidance=torch.full_like(t, flow.guidance),
        pooled_projections=vec,
        encoder_hidden_states=txt,
        txt_ids=torch.zeros(txt.shape[1], 3),
        img_ids=tensor(CANVAS.image_ids).float(),
        return_dict=False,
    )[0]
    hook.remove()
    squares = (predicted - (noise - x_0)) ** 2
    left, right = squares.unflatten(1, (-1, CANVAS.width // 2)).chunk(2, dim=2)
    weights = flow.reference_weight, flow.target_weight
    return (weights[0] * left.mean() + weights[1] * right.mean()) / sum(weights)


def torch_gradients(
    model: FluxTransformer2DModel, batch: EncodedBatch, flow: FlowConfig
) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = torch_loss(model, batch, 0, flow)
    loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return loss.item(), {name: p.grad for name, p in trained.items() if p.grad is not None}


# Ours


@functools.cache
def base() -> WeightSource:
    return flux_diffusers(CONFIG).check(StateDict(make_reference()))


def to_adapter(tensors: Mapping[str, torch.Tensor], folder: Path) -> Adapter:
    """PEFT's factors and the condition embedding by our names, with their own scale.

    Our reader knows no alpha here and folds none in; gradients travel as parameters do.
    """
    names = {name: f"transformer.{name.replace('.default', '')}" for name in tensors}
    held = {names[name]: x.detach().contiguous() for name, x in tensors.items()}
    safetensors.torch.save_file(held, folder / "x.safetensors")
    return read_lora(folder / "x.safetensors", CONFIG)[0]


def lora_split(adapter: Adapter, targets: str, *, scan_layers: bool = True) -> Split:
    """Our model with these factors, at scale alpha / rank."""
    lora = LoraConfig(RANK, targets=targets)
    config = dataclasses.replace(RECIPE, lora=lora, scan_layers=scan_layers)
    split = make_trainee(config, in_memory(CONFIG, base()), one_device(), Start(adapter)).split
    model = nnx.merge(*split)
    for _, part in nnx.iter_modules(model):
        if isinstance(part, Linear | JoinedLinear) and part.lora_b is not None:
            part.lora_scale = ALPHA / RANK
    return split._replace(graphdef=nnx.graphdef(model))


Run = Callable[..., tuple[Any, Metrics]]


def compiled(split: Split, optimizer: optax.GradientTransformation, flow: FlowConfig) -> Run:
    config = dataclasses.replace(RECIPE, flow=flow)
    step = make_step(split.graphdef, optimizer, Customise(config.flow, Schedule(), CANVAS), config)
    return jax.jit(step)


def our_gradients(
    split: Split, batch: EncodedBatch, flow: FlowConfig
) -> tuple[float, dict[str, np.ndarray]]:
    state = first_state(
        split._replace(trained=jax.tree.map(jnp.copy, split.trained)),
        GRADIENTS,
        one_device(),
        ema=False,
    )
    state, metrics = compiled(split, GRADIENTS, flow)(state, split.frozen, batch)
    return float(metrics.loss), flat(state.opt_state)


# Comparisons


def assert_gradients(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], count: int
) -> None:
    assert ours.keys() == theirs.keys()
    assert len(ours) == count
    for path, grad in ours.items():
        assert_close(grad, theirs[path], GRADIENT, f"gradient of {path}")


@pytest.mark.parametrize(
    ("targets", "guidance"), [("attention", 1.0), ("attention+ff", 3.5)], ids=TARGETS
)
def test_gradients_of_adapters(tmp_path: Path, targets: str, guidance: float) -> None:
    """Every factor and the condition embedding; samples with and without text and image."""
    flow, batch = dataclasses.replace(RECIPE.flow, guidance=guidance), make_batch(8, CONFIG)
    model = make_reference()
    add_lora(model, targets)
    their_loss, their_grads = torch_gradients(model, batch, flow)
    factors = {name: p for name, p in model.named_parameters() if "lora" in name}
    factors |= {f"c_embedder.{k}": p for k, p in model.c_embedder.named_parameters()}
    split = lora_split(to_adapter(factors, tmp_path), targets)
    loss, grads = our_gradients(split, batch, flow)
    assert loss == pytest.approx(their_loss, rel=1e-5)
    theirs = flat(lora_split(to_adapter(their_grads, tmp_path), targets).trained)
    assert_gradients(grads, theirs, count=12 if targets == "attention" else 25)


def test_gradients_of_all_parameters() -> None:
    batch, flow = make_batch(8, CONFIG), RECIPE.flow
    model = make_reference()
    their_loss, their_grads = torch_gradients(model, batch, flow)
    recipe = dataclasses.replace(RECIPE, lora=None)

    def split(source: WeightSource) -> Split:
        return make_trainee(recipe, in_memory(CONFIG, source), one_device()).split

    loss, grads = our_gradients(split(base()), batch, flow)
    assert loss == pytest.approx(their_loss, rel=1e-5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(their_grads[name])
    theirs = flat(split(flux_diffusers(CONFIG).check(StateDict(model))).trained)
    assert_gradients(grads, theirs, count=len(flat(split(base()).trained)))


def test_ten_steps(tmp_path: Path) -> None:
    """Clipped AdamW with its own betas and decay, on a new batch and new draws each time."""
    model = make_reference()
    add_lora(model, "attention")
    names = {n: p for n, p in model.named_parameters() if p.requires_grad}
    split = lora_split(to_adapter(names, tmp_path), "attention")
    start = flat(split.trained)
    config = RECIPE.optimizer
    theirs = torch.optim.AdamW(
        names.values(),
        lr=config.learning_rate,
        betas=(config.b1, config.b2),
        weight_decay=config.weight_decay,
    )
    optimizer = make_optimizer(config, RECIPE.steps)
    step = compiled(split, optimizer, RECIPE.flow)
    state = first_state(split, optimizer, one_device(), ema=False)
    for i in range(RECIPE.steps):
        batch = make_batch(8, CONFIG, seed=i)
        theirs.zero_grad()
        loss = torch_loss(model, batch, i, RECIPE.flow)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(names.values(), config.clip)
        theirs.step()
        state, metrics = step(state, split.frozen, batch)
        assert float(metrics.loss) == pytest.approx(loss.item(), rel=1e-5)
        assert float(metrics.grad_norm) == pytest.approx(float(norm), rel=1e-4)
        assert norm > config.clip
    expected = flat(lora_split(to_adapter(names, tmp_path), "attention").trained)
    for path, array in flat(state.params).items():
        assert_close(array, expected[path], TEN_STEPS, path)
        moved, their_move = array - start[path], expected[path] - start[path]
        assert_close(moved, their_move, TEN_STEPS, f"change of {path}")
        assert relative_error(expected[path], start[path]) > 3 * TEN_STEPS
