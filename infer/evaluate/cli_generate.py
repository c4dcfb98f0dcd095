"""`dsd evaluate generate`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dsd_jax.errors import UserError
from dsd_jax.infer.cli import ModelFlags
from dsd_jax.infer.enhance import Enhancer
from dsd_jax.infer.evaluate.cases import check_references, read_cases
from dsd_jax.infer.evaluate.enhancing import enriched_prompts
from dsd_jax.infer.evaluate.generate import Making
from dsd_jax.infer.evaluate.generate import generate as generate_run
from dsd_jax.infer.evaluate.runs import check_folder
from dsd_jax.infer.settings import Settings
from dsd_jax.shares import ShareFlags

__all__ = ["MethodFlags", "WorkFlags", "generate"]

_PLAIN = tyro.conf.arg(name="")  # `--steps`, not `--settings.steps`


@dataclasses.dataclass(frozen=True)
class MethodFlags:
    """The method, and what it is asked.

    Attributes:
        method: Name of the method in tables.
        seeds: Seeds of the images of a case, such as 0 1 2 3. Default: as many as the benchmark
            asks for, from 0.
        prompt: Prompts of the benchmark as they are, or enriched by a vision model that looks at
            the reference. Images are scored by the original either way. Of several workers, number
            0 asks the vision model.
        no_reference: Give the model the text alone, such as to score a text-to-image model.
    """

    method: str
    seeds: tuple[int, ...] | None = None
    prompt: Literal["original", "enhanced"] = "original"
    no_reference: bool = False


@dataclasses.dataclass(frozen=True)
class WorkFlags:
    """The way of working.

    Attributes:
        batch_size: Images sampled together. Default: one per device that shares the batch.
        retry_failed: Try again the images that failed before.
    """

    batch_size: int | None = None
    retry_failed: bool = False


def generate(
    cases: tyro.conf.Positional[Path],
    output_dir: Path,
    asked: Annotated[MethodFlags, _PLAIN],
    enhancer: Annotated[Enhancer, _PLAIN] = Enhancer(),
    model: Annotated[ModelFlags, _PLAIN] = ModelFlags(),
    settings: Annotated[Settings, _PLAIN] = Settings(),
    work: Annotated[WorkFlags, _PLAIN] = WorkFlags(),
    share: Annotated[ShareFlags, _PLAIN] = ShareFlags(),
) -> None:
    """Generate the images of all cases. If it was stopped, start it again to resume.

    Images lie as those of DreamBench++ do: tgt_image/SUBJECT/PROMPT_K.png, with the text and the
    reference of each in folders beside it.

    Args:
        cases: Cases file.
        output_dir: Folder of the run.
        asked: The method, and what it is asked.
        enhancer: The vision model that enriches prompts.
        model: The model.
        settings: Settings of sampling.
        work: The way of working.
        share: Images that this process makes.
    """
    read, own = read_cases(cases), share.share()
    pipeline = model.load()
    for notice in pipeline.notices:
        print(f"note: {notice}")
    enriched = None
    if asked.prompt == "enhanced":
        if asked.no_reference:
            raise UserError("--prompt enhanced looks at the reference; leave --no_reference out")
        check_folder(output_dir, asked.method, read)
        check_references(read)
        height, width = pipeline.check(settings, two_frames=True).size
        enriched = enriched_prompts(
            read,
            output_dir,
            enhancer,
            (height, width // 2),
            ask=own.number == 0,
            retry_failed=work.retry_failed,
        )
        if enriched.failed:
            name, why = next(iter(enriched.failed.items()))
            print(f"{len(enriched.failed):,} prompts are used as they are, such as {name}: {why}")
    making = Making(asked.method, settings, asked.seeds, not asked.no_reference, enriched)
    summary = generate_run(
        pipeline,
        read,
        output_dir,
        making,
        batch_size=work.batch_size,
        share=own,
        retry_failed=work.retry_failed,
        on_result=_report,
    )
    print(f"{output_dir}: {summary}")
    if summary.stopped:
        print("stopped before the last image; the same command goes on with the rest")
        raise SystemExit(130)
    if summary.failed:
        raise SystemExit(1)


def _report(entry: dict[str, Any]) -> None:
    if entry["status"] == "error":
        print(f"image {entry['id']}: {entry['error']}")
