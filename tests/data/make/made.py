"""A dataset in the making, written by hand: every status there is, and drawn grids."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from dsd_jax.data.make.crops import Pictures, boxes_of, grid_file
from dsd_jax.data.make.parts import STAGES, Parts, Row, part_of
from dsd_jax.data.make.statistics import MAKING

__all__ = ["EVIL", "cropped", "write_making"]

SIDE = 64
EVIL = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&\u202e"
BOXES = {
    "1": [1, 1, 31, 31],
    "2": [33, 1, 63, 31],
    "3": [1, 33, 31, 63],
    "4": [33, 33, 63, 63],
}
_TASKS = ("identity", "relight")
_SUBJECTS = ("red fox", "tin robot", "clay pot")
# Ends of a pair, its status and reason in `pairs`, and then the judge's.
_PAIRS: tuple[tuple[str, str, str, str], ...] = (
    ("12", "", "kept", ""),
    ("13", "", "rejected", "no"),
    ("14", "", "undecided", "neither_yes_nor_no"),
    ("23", "near_copy", "", ""),
    ("24", "", "kept", ""),
    ("34", "", "failed", "unanswered"),
)


def drawn(number: int) -> bytes:
    """Four panels of their own colours, with a circle in each."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(image)
    for panel, box in BOXES.items():
        hue = (number * 47 + int(panel) * 80) % 256
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=(hue, 255 - hue, 90))
        draw.ellipse((box[0] + 8, box[1] + 8, box[2] - 9, box[3] - 9), fill="#c8553d")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_making(root: Path, grids: int = 6, parts: int = 2, said: str = "yes") -> Parts:
    """All stages finished; `said` is what the judge said to every kept pair."""
    made = Parts(root, parts)
    rows: dict[str, list[list[Row]]] = {stage: [[] for _ in range(parts)] for stage in STAGES}
    for number in range(grids):
        caption = f"{number * 7919:016x}"
        task = _TASKS[number % 2]
        prompt, grid = f"{caption}-{task}", f"{caption}-{task}-0"
        part = part_of(caption, parts)
        subject = _SUBJECTS[number % 3]
        text = f"a grid of four photos of a {subject}: top-left, top-right {number}"
        source = {"file": "a.csv", "row": number}
        own: dict[str, list[Row]] = {
            "captions": [_row(caption, caption=f"a {subject} {number}", source=source)],
            "prompts": [_row(prompt, task=task, prompt=text, subject=subject, tokens=20)],
            "grids": [_row(grid, seed=number, width=SIDE, height=SIDE)],
            "pairs": [],
            "judge": [],
            "caption": [],
        }
        for ends, filtered, status, reason in _PAIRS:
            name = f"{grid}-{ends}"
            boxes = {"grid_id": grid, "reference_box": BOXES[ends[0]], "target_box": BOXES[ends[1]]}
            own["pairs"].append(_row(name, "rejected" if filtered else "kept", filtered, **boxes))
            if not filtered:
                own["judge"].append(_judged(name, status, reason, said))
            if status == "kept":
                own["caption"].append(_described(name, subject))
        for stage, held in own.items():
            for row in held:
                if stage in {"prompts", "judge"}:
                    row |= {"model": "model-1", "wording": "v1@0123"}
            rows[stage][part] += held
        path = grid_file(made, grid)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn(number))
    rows["captions"][0].append(_row("f" * 16, "rejected", "no_clear_subject", caption="the sea"))
    for stage, by_part in rows.items():
        for part, held in enumerate(by_part):
            made.write(stage, part, held)
    (root / MAKING).write_text(f'{{"parts": {parts}}}')
    return made


def _crop(parts: Parts, pair: Row, end: int) -> bytes:
    boxes = boxes_of(pair)
    assert boxes is not None
    file = io.BytesIO()
    with Image.open(grid_file(parts, pair["id"].rpartition("-")[0])) as image:
        image.crop(boxes[end]).save(file, "PNG")
    return file.getvalue()


def cropped(parts: Parts) -> Pictures:
    """What crops the panels of pairs."""

    def pictures(pairs: Sequence[Row]) -> list[tuple[bytes, bytes]]:
        return [(_crop(parts, pair, 0), _crop(parts, pair, 1)) for pair in pairs]

    return pictures


def _row(name: str, status: str = "kept", reason: str = "", **fields: Any) -> Row:
    return {"id": name, "status": status, **({"reason": reason} if reason else {}), **fields}


def _judged(name: str, status: str, reason: str, said: str) -> Row:
    verdict = {"kept": {"verdict": "yes"}, "rejected": {"verdict": "no"}}.get(status, {})
    turns = [
        {"step": step, "sample": 0, "finish": "stop", "answer": said, "model": "model-1"}
        for step in ("step_1", "step_2", "step_3")
    ]
    if status == "undecided":
        turns.append({**turns[-1], "sample": 1})
    return _row(name, status, reason, mode="steps", turns=turns, **verdict)


def _described(name: str, subject: str) -> Row:
    def way(ends: str) -> Row:
        return {
            "caption": f"a {subject} as in {ends[1]}",
            "caption_model": "model-1",
            "instruction": f"move the {subject} from {ends[0]} to {ends[1]}",
            "instruction_model": "model-1",
        }

    ends = name[-2:]
    return _row(name, wording="v1@0123", forward=way(ends), reverse=way(ends[::-1]))
