"""A work folder written by hand: every status there is, and drawn grids."""

import io
from pathlib import Path

from PIL import Image, ImageDraw

from dsd_jax.data.make.ids import CaptionId, GridId, PairId, PromptId
from dsd_jax.data.make.parts import Parts, part_of
from dsd_jax.data.make.stages import (
    CAPTIONS,
    DESCRIPTIONS,
    GRIDS,
    JUDGEMENTS,
    PAIRS,
    PROMPTS,
    STAGES,
    Box,
    Caption,
    Description,
    Grid,
    Judgement,
    Pair,
    Prompt,
    Source,
    Stage,
    StageRow,
    Status,
    Turn,
    Words,
)

__all__ = ["EVIL", "write_folder"]

SIDE = 64
EVIL = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&\u202e"
BOXES: dict[int, Box] = {
    1: (1, 1, 31, 31),
    2: (33, 1, 63, 31),
    3: (1, 33, 31, 63),
    4: (33, 33, 63, 63),
}
_TASKS = ("identity", "relight")
_SUBJECTS = ("red fox", "tin robot", "clay pot")
# Panels of a pair, its reason in `pairs`, and then the judge's status and reason.
_PAIRS: tuple[tuple[int, int, str | None, Status, str | None], ...] = (
    (1, 2, None, "kept", None),
    (1, 3, None, "rejected", "no"),
    (1, 4, None, "undecided", "neither_yes_nor_no"),
    (2, 3, "near_copy", "kept", None),
    (2, 4, None, "kept", None),
    (3, 4, None, "failed", "unanswered"),
)


def drawn(number: int) -> bytes:
    """Four panels of their own colours, with a circle in each."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(image)
    for panel, box in BOXES.items():
        hue = (number * 47 + panel * 80) % 256
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=(hue, 255 - hue, 90))
        draw.ellipse((box[0] + 8, box[1] + 8, box[2] - 9, box[3] - 9), fill="#c8553d")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_folder(root: Path, grids: int = 6, parts: int = 2, said: str = "yes") -> Parts:
    """Finishes all stages; `said` is the judge's answer about every kept pair."""
    made = Parts(root, parts)
    rows: dict[Stage[StageRow], list[list[StageRow]]] = {
        stage: [[] for _ in range(parts)] for stage in STAGES
    }
    for number in range(grids):
        caption = CaptionId(f"{number * 7919:016x}")
        part = part_of(caption, parts)
        for stage, held in _rows(caption, number, said).items():
            rows[stage][part] += held
        path = made.picture(GridId(PromptId(caption, _TASKS[number % 2]), 0))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn(number))
    rows[CAPTIONS][0].append(
        Caption(
            id=CaptionId("f" * 16),
            caption="the sea",
            source=Source(file="a.csv", row=99),
            status="rejected",
            reason="no_clear_subject",
        )
    )
    for stage, by_part in rows.items():
        for part, held in enumerate(by_part):
            made.write(stage, part, held)
    (root / "making.json").write_text(f'{{"parts": {parts}}}')
    return made


def _rows(caption: CaptionId, number: int, said: str) -> dict[Stage[StageRow], list[StageRow]]:
    """Everything that one caption leads to."""
    task, subject = _TASKS[number % 2], _SUBJECTS[number % 3]
    prompt = PromptId(caption, task)
    grid = GridId(prompt, 0)
    text = f"a grid of four photos of a {subject}: top-left, top-right {number}"
    rows: dict[Stage[StageRow], list[StageRow]] = {
        CAPTIONS: [
            Caption(
                id=caption,
                caption=f"a {subject} {number}",
                source=Source(file="a.csv", row=number),
                status="kept",
            )
        ],
        PROMPTS: [
            Prompt(
                id=prompt,
                task=task,
                prompt=text,
                subject=subject,
                tokens=20,
                model="model-1",
                wording="v1@0123",
                status="kept",
            )
        ],
        GRIDS: [
            Grid(
                id=grid,
                prompt_id=prompt,
                task=task,
                prompt=text,
                seed=number,
                width=SIDE,
                height=SIDE,
                status="kept",
            )
        ],
        PAIRS: [],
        JUDGEMENTS: [],
        DESCRIPTIONS: [],
    }
    for reference, target, filtered, status, reason in _PAIRS:
        name = PairId(grid, reference, target)
        rows[PAIRS].append(
            Pair(
                id=name,
                grid_id=grid,
                prompt_id=prompt,
                task=task,
                reference_box=BOXES[reference],
                target_box=BOXES[target],
                similarity=0.5,
                status="rejected" if filtered else "kept",
                reason=filtered,
            )
        )
        if not filtered:
            rows[JUDGEMENTS].append(_judged(name, status, reason, said))
            if status == "kept":
                rows[DESCRIPTIONS].append(_described(name, subject))
    return rows


def _judged(name: PairId, status: Status, reason: str | None, said: str) -> Judgement:
    turns = [
        Turn(step=step, sample=0, finish="stop", answer=said, model="model-1")
        for step in ("step_1", "step_2", "step_3")
    ]
    if status == "undecided":
        turns.append(Turn(step="step_3", sample=1, finish="stop", answer=said, model="model-1"))
    return Judgement(
        id=name,
        mode="steps",
        wording="v1@0123",
        model="model-1",
        turns=tuple(turns),
        verdict="yes" if status == "kept" else "no" if status == "rejected" else None,
        status=status,
        reason=reason,
    )


def _described(name: PairId, subject: str) -> Description:
    def way(pair: PairId) -> Words:
        return Words(
            caption=f"a {subject} as in {pair.target}",
            caption_model="model-1",
            instruction=f"move the {subject} from {pair.reference} to {pair.target}",
            instruction_model="model-1",
        )

    return Description(
        id=name,
        wording="v1@0123",
        forward=way(name),
        reverse=way(name.flipped()),
        status="kept",
    )
