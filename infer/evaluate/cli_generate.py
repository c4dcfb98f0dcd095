"""`dsd evaluate generate`."""

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

__all__ = ["generate"]

_PLAIN = tyro.conf.arg(name="")  # `--steps`, not `--settings.steps`


def generate(
    cases: tyro.conf.Positional[Path],
    method: str,
    output_dir: Path,
    seeds: tuple[int, ...] | None = None,
    prompt: Literal["original", "enhanced"] = "original",
    no_reference: bool = False,
    enhancer: Annotated[Enhancer, _PLAIN] = Enhancer(),
    model: Annotated[ModelFlags, _PLAIN] = ModelFlags(),
    settings: Annotated[Settings, _PLAIN] = Settings(),
    batch_size: int | None = None,
    retry_failed: bool = False,
    share: Annotated[ShareFlags, _PLAIN] = ShareFlags(),
) -> None:
    """Generate the images of all cases. If it was stopped, start it again to resume.

    Images lie as those of DreamBench++ do: tgt_image/SUBJECT/PROMPT_K.png, with the text and the
    reference of each in folders beside it.

    Args:
        cases: Cases file.
        method: Name of the method in tables.
        output_dir: Folder of the run.
        seeds: Seeds of the images of a case, such as 0 1 2 3. Default: as many as the benchmark
            asks for, from 0.
        prompt: Prompts of the benchmark as they are, or enriched by a vision model that looks at
            the reference. Images are scored by the original either way. Of several workers, number
            0 asks the vision model.
        no_reference: Give the model the text alone, such as to score a text-to-image model.
        enhancer: The vision model that enriches prompts.
        model: The model.
        settings: Settings of sampling.
        batch_size: Images sampled together. Default: one per device that shares the batch.
        retry_failed: Try again the images that failed before.
        share: Images that this process makes.
    """
    read, own = read_cases(cases), share.share()
    pipeline = model.load()
    for notice in pipeline.notices:
        print(f"note: {notice}")
    enriched = None
    if prompt == "enhanced":
        if no_reference:
            raise UserError("--prompt enhanced looks at the reference; leave --no_reference out")
        check_folder(output_dir, method, read)
        check_references(read)
        height, width = pipeline.check(settings, two_frames=True).size
        enriched = enriched_prompts(
            read,
            output_dir,
            enhancer,
            (height, width // 2),
            ask=own.number == 0,
            retry_failed=retry_failed,
        )
        if enriched.failed:
            name, why = next(iter(enriched.failed.items()))
            print(f"{len(enriched.failed):,} prompts are used as they are, such as {name}: {why}")
    making = Making(method, settings, seeds, not no_reference, enriched)
    summary = generate_run(
        pipeline,
        read,
        output_dir,
        making,
        batch_size=batch_size,
        share=own,
        retry_failed=retry_failed,
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
