"""`dsd evaluate prepare`, `generate` and `import`."""

from pathlib import Path

import tyro

from dsd_jax.infer.evaluate.benches.registry import BENCHES, BenchName, counts
from dsd_jax.infer.evaluate.benches.registry import prepare as prepare_bench
from dsd_jax.infer.evaluate.benches.source import Source
from dsd_jax.terminal import table_text

__all__ = ["prepare"]


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

    Args:
        bench: The benchmark.
        output: Cases file to write, such as cases.jsonl. Pictures that are not files yet go to a
            folder beside it.
        root: Folder of the benchmark. xverse takes two: its clone, then DreamBench++.
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
