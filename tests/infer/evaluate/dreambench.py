"""Cases with the subjects and prompts of DreamBench++, without its pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dsd_jax.infer.evaluate.cases import Case, Picture
from dsd_jax.infer.evaluate.published import SUBJECTS

CLASSES = ["photorealistic"] * 4 + ["style"] * 3 + ["imaginative"] * 2


def subject(category: str, number: int) -> str:
    """Id of a subject. Object 20 has the name that only some files of the archive use."""
    live = "live_subject_" if category in ("animal", "human") else ""
    name = "rubik's_cube" if (category, number) == ("object", 20) else "t-shirt"
    return f"{live}{category}_{number:02}_{name}"


def cases_of(counts: Mapping[str, int | Sequence[int]] = SUBJECTS, prompts: int = 9) -> list[Case]:
    """Cases of some subjects of every category, by their number or their numbers."""
    picture = Picture(Path("/bench/reference.jpg"), "0" * 64)
    return [
        Case(
            f"{subject(category, number)}-{prompt}",
            "dreambench++",
            subject(category, number),
            f"prompt {prompt}",
            (picture,),
            category=category,
            prompt_index=prompt,
            prompt_class=CLASSES[prompt],
        )
        for category, count in counts.items()
        for number in (range(count) if isinstance(count, int) else count)
        for prompt in range(prompts)
    ]
