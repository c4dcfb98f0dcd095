"""`dsd evaluate prepare` and `import`."""

from pathlib import Path

import tyro

from dsd_jax.infer.evaluate.adopt import adopt
from dsd_jax.infer.evaluate.benches.registry import BENCHES, BenchName, counts
from dsd_jax.infer.evaluate.benches.registry import prepare as prepare_bench
from dsd_jax.infer.evaluate.benches.source import Source
from dsd_jax.infer.evaluate.layouts import Layout
from dsd_jax.terminal import facts_text, table_text

__all__ = ["import_images", "prepare"]


def prepare(
    bench: tyro.conf.Positional[BenchName],
    output: Path,
    root: tuple[Path, ...] = (),
    mask_dir: Path | None = None,
    other_pictures: bool = False,
    count: int = 100,
    seed: int = 0,
) -> None:
    """Turn a benchmark into a file of cases, and check that it is complete.

    A table (jsonl) has the columns prompt and reference, and may have target, mask, id, subject,
    subject_text, category, prompt_index, prompt_class, samples and tags. Paths in it are relative
    to it. Given without --root, a benchmark says which folders it reads.

    Args:
        bench: The benchmark.
        output: Cases file to write, such as cases.jsonl. Pictures that are not files yet go to a
            folder beside it.
        root: Folder of the benchmark, or the file of a table. xverse takes two: its clone, then
            DreamBench++.
        mask_dir: Folder of masks that are white where the subject is. The mask of ROOT/a/b.jpg is
            MASK_DIR/a/b.png.
        other_pictures: Accept pictures other than those that were released.
        count: Number of cases, for a benchmark that draws them.
        seed: Seed of that draw.
    """
    pictures = output.with_name(f"{output.stem}-pictures")
    source = Source(root, pictures, count, seed, released=not other_pictures)
    cases = prepare_bench(bench, source, output, mask_dir)
    chosen = BENCHES[bench]
    print(table_text(*counts(cases), title=chosen.title))
    if not chosen.counted:
        print("the number of cases is not checked, since none is fixed for this benchmark")
    print(f"wrote {output}")


def import_images(
    name: tyro.conf.Positional[str],
    folder: tyro.conf.Positional[Path],
    cases: Path,
    output_dir: Path,
    layout: Layout = "auto",
    partial: bool = False,
) -> None:
    """Make a run of the images that another method made. They stay where they are.

    Exits with status 1, and writes no run, if an image is missing, corrupt, there twice, or in the
    place of another.

    Args:
        name: Name of the method in tables. In a folder of several methods of the DreamBench++
            archive it also says which one is meant.
        folder: Folder of the images, or a table with the columns case and image, and perhaps
            sample, seed and prompt.
        cases: Cases that they were made for.
        output_dir: Folder of the run.
        layout: Layout of the images. auto takes the one by which most cases have an image.
        partial: Write the run even if images are missing or cannot be used.
    """
    done = adopt(name, folder, cases, output_dir, layout=layout, partial=partial)
    facts = [("layout", done.layout), ("used", f"{len(done.images):,} images")]
    facts += [(kind, f"{len(own):,}, such as {own[0]}") for kind, own in done.kinds.items()]
    print(facts_text(facts))
    print(f"{done.report} has the full lists")
    if done.written:
        print(f"wrote {output_dir}")
        return
    print(
        f"{done.holes:,} images are missing or cannot be used, so no run was written; mend the "
        "folder, or import what there is with --partial"
    )
    raise SystemExit(1)
