"""Digests of the outputs of `dsd` at fixed seeds: does a change of the code change a number?

    python -m benchmarks.exact.regress --record             # writes results/exact/regress.json
    python -m benchmarks.exact.regress                      # compares; status 1: differs
    python -m benchmarks.exact.regress --tree OLD --record  # runs the checkout OLD instead

Numbers hold for one kind of machine and one set of versions, so record and compare on the same one.
All commands run on the toy weights that ship with the package.
"""

import argparse
import csv
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from benchmarks.results import result_path, save

ROOT = Path(__file__).parents[2]
RESULT = result_path(__file__)
SMALL = ("--steps", "4", "--dtype", "float32", "--seed", "7")
LIGHT = "--max_sequence_length", "16"
# Keys of written JSON that may differ between two runs of one tree.
CLOCKS = {
    "seconds", "started", "finished", "time", "date", "step_seconds", "data_wait_seconds",
    "samples_per_second_per_device", "mfu", "host", "peak_memory_gib", "memory_gib",
}  # fmt: skip

SHAPES, COLOURS = ("circle", "square", "star", "heart"), ("red", "blue", "green", "pink")

Digests = dict[str, str]


def digest(*parts: bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all parts."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def pixels(path: Path) -> str:
    """Digest of a picture's size and pixels."""
    with Image.open(path) as image:
        return digest(str(image.size).encode(), image.convert("RGB").tobytes())


def tensors(path: Path) -> str:
    """Digest of the names, dtypes, shapes and bytes of a safetensors file."""
    loaded = load_file(path)
    return digest(
        *(
            f"{name} {loaded[name].dtype} {loaded[name].shape}".encode() + loaded[name].tobytes()
            for name in sorted(loaded)
        )
    )


def plain(value: Any, root: str) -> Any:
    """JSON without clocks, and with paths relative to the run's folder."""
    if isinstance(value, dict):
        return {k: plain(v, root) for k, v in value.items() if k not in CLOCKS}
    if isinstance(value, list):
        return [plain(v, root) for v in value]
    return value.replace(root, ".") if isinstance(value, str) else value


def lines(path: Path, root: Path) -> str:
    """Digest of the objects of a JSONL file, in their order."""
    rows = [plain(json.loads(line), str(root)) for line in path.read_text().splitlines()]
    return digest(json.dumps(rows, sort_keys=True).encode())


class Tree:
    """A checkout whose `dsd` runs in a folder of its own."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self.tree, self.folder = tree, folder
        self.toy = str(tree / "dsd_jax" / "toy" / "flux")
        self.lora = str(tree / "dsd_jax" / "toy" / "lora")

    def dsd(self, *words: object, fails: bool = False) -> None:
        """Runs one command; stops with its output if it ends badly."""
        environment = os.environ | {"PYTHONPATH": str(self.tree), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "dsd_jax", *map(str, words)]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        if (done.returncode != 0) != fails:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")


def draw_reference(tree: Tree) -> Path:
    """A picture of random tiles, drawn once."""
    path = tree.folder / "reference.png"
    tile = np.random.default_rng(3).integers(0, 255, (3, 5, 3), dtype=np.uint8)
    Image.fromarray(np.kron(tile, np.ones((16, 12, 1), np.uint8))).save(path)
    return path


def generate(tree: Tree) -> Iterator[tuple[str, str]]:
    """One image by every path through the sampler."""
    subject = draw_reference(tree)
    words = ("--text", "a red circle with stripes on a beach", *SMALL, *LIGHT)
    base = ("--base_path", tree.toy, *words, "--disable_gemini_prompt")
    shown = (*base, "--image_path", subject, "--height", "32", "--width", "64")
    lora = (*shown, "--lora_path", tree.lora)
    runs: dict[str, tuple[object, ...]] = {
        "text": (*base, "--height", "64"),
        "lora": (*lora, "--save_frames"),
        "lora scaled": (*lora, "--lora_scale", "0.5"),
        "lora merged": (*lora, "--merge_lora"),
        "true guidance": (
            *lora, "--i_guidance", "2", "--t_guidance", "1.5", "--negative_prompt", "blue",
        ),
        "three images": (*lora, "--num_images", "3", "--no_vae_sample"),
        "model offload": (*lora, "--model_offload"),
        "sequential offload": (*lora, "--sequential_offload"),
        "bfloat16": (*lora, "--dtype", "bfloat16"),
    }  # fmt: skip
    for name, flags in runs.items():
        stem = name.replace(" ", "_")
        out, npy = tree.folder / f"{stem}.png", tree.folder / f"{stem}.npy"
        tree.dsd("generate", *flags, "--output_path", out, "--output_latents", npy)
        yield f"{name}: latents", digest(np.load(npy).tobytes())
        for path in sorted(tree.folder.glob(f"{stem}*.png")):
            yield f"{name}: {path.name}", pixels(path)


def batch(tree: Tree) -> Iterator[tuple[str, str]]:
    """A manifest with a bad row, at once and in two parts."""
    draw_reference(tree)
    rows: list[dict[str, Any]] = [
        {"id": f"row{i}", "text": text, "image": "reference.png", "seed": i, "height": 32}
        for i, text in enumerate(("a cup in a forest", "a cup on snow", "a cup at night"))
    ]
    rows.append({"id": "gone", "text": "a cup", "image": "missing.png", "seed": 1})
    manifest = tree.folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--base_path", tree.toy, "--lora_path", tree.lora, "--steps", "3", "--width", "64",
             "--i_guidance", "2", "--dtype", "float32", *LIGHT)  # fmt: skip
    tree.dsd("batch", manifest, "--output_dir", "whole", *flags, fails=True)
    for part in (0, 1):
        tree.dsd("batch", manifest, "--output_dir", f"part{part}", *flags,
                 "--shard", part, "--num_shards", 2, fails=part == 1)  # fmt: skip
    for folder in ("whole", "part0", "part1"):
        for path in sorted((tree.folder / folder).glob("*.png")):
            yield f"{folder}: {path.name}", pixels(path)
        for path in sorted((tree.folder / folder).glob("results*.jsonl")):
            yield f"{folder}: {path.name}", lines(path, tree.folder)


def make(tree: Tree) -> Iterator[tuple[str, str]]:
    """Captions to a packed dataset on the toy provider."""
    with (tree.folder / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["TEXT"])
        for shape, colour in itertools.product(SHAPES, COLOURS):
            table.writerow([f"a {colour} {shape} with white dots on snow at northwest"])
    (tree.folder / "making.toml").write_text(
        f"""root = "making"
base_path = {json.dumps(tree.toy)}
parts = 3
[providers.toy]
kind = "toy"
model = "toy"
[captions]
source = ["captions.csv"]
count = 12
similarity = 1.0
[prompts]
provider = "toy"
[grids]
height = 64
width = 64
steps = 16
dtype = "float32"
[pairs.check]
margin = 0.0
[judge]
provider = "toy"
[caption]
provider = "toy"
[pack]
size = [32, 32]
"""
    )
    tree.dsd("data", "make", "making.toml")
    tree.dsd("data", "verify", "making/dataset")
    making = tree.folder / "making"
    for path in sorted(making.glob("*/part-*.jsonl")):
        yield f"{path.relative_to(making)}", digest(path.read_bytes())
    for path in sorted((making / "dataset").glob("*")):
        if path.suffix == ".array_record":
            yield f"dataset/{path.name}", digest(path.read_bytes())


def train(tree: Tree) -> Iterator[tuple[str, str]]:
    """Twenty steps at once and in two runs, and their exports."""
    text = ("--base_path", tree.toy, *LIGHT)
    if not (tree.folder / "making").exists():
        dict(make(tree))
    dataset = tree.folder / "making" / "dataset"
    tree.dsd("data", "encode", dataset, "encoded", "--sizes", 32, 32, "--text", *text,
             "--dtype", "float32", "--batch_size", 8)  # fmt: skip
    flags = ("--data", dataset, *text, "--batch_size", 4, "--log_every", 1, "--no_tensorboard")
    encoded = ("--encoded", "encoded")
    tree.dsd("train", "toy_student", *flags, *encoded, "--output_dir", "run", "--steps", 20)
    tree.dsd("train", "toy_student", *flags, *encoded, "--output_dir", "resumed", "--steps", 20,
             "--save_every", 10, "--keep_last", 9)  # fmt: skip
    checkpoints = tree.folder / "resumed" / "checkpoints"
    last = next(path for path in checkpoints.iterdir() if path.name.endswith("20"))
    shutil.rmtree(last)
    tree.dsd("train", "toy_student", *flags, *encoded, "--output_dir", "resumed", "--steps", 20,
             "--save_every", 10, "--keep_last", 9)  # fmt: skip
    tree.dsd("train", "tiny", *flags, "--output_dir", "pictures", "--height", 32, "--width", 64,
             "--steps", 3, "--eval_data", dataset, "--eval_every", 3, "--eval_pairs", 2,
             "--eval_samples", 1, "--eval_steps", 2)  # fmt: skip
    for run in ("run", "resumed", "pictures"):
        rows = [
            json.loads(s) for s in (tree.folder / run / "metrics.jsonl").read_text().splitlines()
        ]
        kept = [{k: v for k, v in row.items() if "loss" in k or k == "step"} for row in rows]
        yield f"{run}: losses", digest(json.dumps(kept).encode())
    for path in sorted((tree.folder / "pictures" / "samples").glob("*.png")):
        yield f"pictures: {path.name}", pixels(path)
    for run in ("run", "resumed"):
        tree.dsd("convert", "lora", run, f"{run}-peft")
        yield from files(tree, f"{run}-peft")
    tree.dsd("convert", "lora", "run", "run-kohya", "--layout", "kohya")
    yield from files(tree, "run-kohya")
    tree.dsd("convert", "to-torch", f"{tree.toy}/transformer", "merged.safetensors",
             "--layout", "bfl", "--lora_path", tree.lora)  # fmt: skip
    yield "merged.safetensors", tensors(tree.folder / "merged.safetensors")
    tree.dsd("convert", "to-jax", tree.toy, "orbax")
    tree.dsd("convert", "to-torch", "orbax", "back")
    yield from files(tree, "back")


def files(tree: Tree, folder: str) -> Iterator[tuple[str, str]]:
    """Digests of the tensors and of the JSON of an exported folder."""
    for path in sorted((tree.folder / folder).rglob("*")):
        name = f"{path.relative_to(tree.folder)}"
        if path.suffix == ".safetensors":
            yield name, tensors(path)
        elif path.suffix == ".json":
            yield name, digest(json.dumps(plain(json.loads(path.read_text()), "")).encode())


def plan(tree: Tree) -> Iterator[tuple[str, str]]:
    """Plans for GPUs, which need no other compiler than this machine's."""
    for job in ("train", "sample"):
        out = tree.folder / f"plan-{job}.json"
        tree.dsd("plan", "paper", "--topology", "h100:8", "--job", job, "--json", out)
        yield job, digest(json.dumps(json.loads(out.read_text())).encode())


PARTS: dict[str, Callable[[Tree], Iterator[tuple[str, str]]]] = {
    part.__name__: part for part in (generate, batch, make, train, plan)
}


def main() -> None:
    """Runs commands and records the digests, or compares them with the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout to run")
    parser.add_argument("--record", action="store_true", help="write the record")
    parser.add_argument("--commit", default="", help="of the checkout, for the record")
    flags = parser.parse_args()
    record: Digests = {}
    if RESULT.exists():
        record = {row["output"]: row["sha256"] for row in json.loads(RESULT.read_text())["rows"]}
    chosen = flags.parts or list(PARTS)
    if unknown := sorted(set(chosen) - set(PARTS)):
        parser.error(f"unknown parts {unknown}")
    found: Digests = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(flags.tree.resolve(), Path(folder).resolve())
        for name in chosen:
            found |= {f"{name}: {output}": value for output, value in PARTS[name](tree)}
            print(f"{name}: {len(found)} digests so far", flush=True)
    others = {name: value for name, value in record.items() if part_of(name) not in chosen}
    if flags.record:
        rows = [{"output": name, "sha256": value} for name, value in {**others, **found}.items()]
        save(__file__, rows, commit=flags.commit)
        return
    expected = {name: value for name, value in record.items() if part_of(name) in chosen}
    differing = [n for n in {**expected, **found} if expected.get(n) != found.get(n)]
    for name in differing:
        print(f"differs: {name}: {expected.get(name)} recorded, {found.get(name)} now")
    same = len(expected) - len(set(differing) & set(expected))
    print(f"{same} of {len(expected)} are as recorded")
    raise SystemExit(bool(differing))


def part_of(output: str) -> str:
    """Name of the part that an output belongs to."""
    return output.partition(":")[0]


if __name__ == "__main__":
    main()
