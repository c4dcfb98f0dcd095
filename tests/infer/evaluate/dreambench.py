"""Cases with the subjects and prompts of DreamBench++, without its pictures."""

from pathlib import Path

from dsd_jax.infer.evaluate.cases import Case, Picture
from dsd_jax.infer.evaluate.published import SUBJECTS

CLASSES = ["photorealistic"] * 4 + ["style transfer"] * 3 + ["imaginative"] * 2


def subject(category: str, number: int, name: str = "thing") -> str:
    live = "live_subject_" if category in ("animal", "human") else ""
    return f"{live}{category}_{number:02}_{name}"


def cases_of(counts: dict[str, int] = SUBJECTS, prompts: int = 9) -> list[Case]:
    """All cases; object 20 has the name that only some files of the archive use."""
    picture = Picture(Path("/bench/reference.jpg"), "0" * 64)
    return [
        Case(
            f"{subject(category, number)}-{prompt}",
            "dreambench++",
            subject(category, number, "rubik's_cube" if number == 20 else "t-shirt"),
            f"prompt {prompt}",
            (picture,),
            category=category,
            prompt_index=prompt,
            prompt_class=CLASSES[prompt],
        )
        for category, count in counts.items()
        for number in range(count)
        for prompt in range(prompts)
    ]
