"""Writes `docs/verification.md` from the dated results in `benchmarks/results`.

    python -m benchmarks.report

Run after any other benchmark, so that the page has its figures.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.results import table

ROOT = Path(__file__).parent.parent

# (result, title, what the table says), in the order of the page.
SECTIONS = (
    (
        "parity",
        "Parity with PyTorch, per module",
        """Relative error `||ours - theirs|| / ||theirs||` against modules of diffusers and
transformers with small random weights, float32, and the bound that the test asserts. Rows marked
bfloat16 compare both with the float32 result: ours may be 1.5 times as large as theirs.""",
    ),
    (
        "full_size_names",
        "Names and shapes at full size",
        """Modules of the published configurations on torch's `meta` device against our tables and
our modules.""",
    ),
    (
        "convert_full_size",
        "Conversion at the real size",
        """A transformer of FLUX.1-dev's size, random bfloat16 bits, to Orbax and back; every tensor
is compared by SHA-256. Peak memory is the process's largest resident set.""",
    ),
    (
        "lora_dialects",
        "LoRA dialects",
        """One random adapter in every dialect: exactness of the round trip, and outputs against
PyTorch and against the base model.""",
    ),
    (
        "mesh_equality",
        "Meshes",
        """Sampling with true guidance on eight virtual CPU devices against one device, float32:
relative error of the final latents.""",
    ),
    (
        "sampling_memory",
        "The sampling step on TPU slices",
        """FLUX.1-dev, two frames of 512 x 512, compiled by the TPU compiler on a machine without a
TPU; memory per chip.""",
    ),
    (
        "sampling_step_cpu",
        "Speed of the sampling step, CPU",
        "Width 1024, 4 + 8 blocks, 2,048 + 512 tokens, float32, against diffusers in the same run.",
    ),
    (
        "load_time",
        "Loading",
        "From a checkpoint to arrays on the device, against reading the same bytes.",
    ),
    (
        "batch_kill_restart",
        "Killed and restarted batches",
        "`dsd batch` killed at random moments and started again until it was done.",
    ),
    (
        "train_step_cpu",
        "Speed of the training step, CPU",
        "Against a PyTorch and PEFT loop in the same run.",
    ),
    ("train_meshes", "Training over meshes and processes", "Losses of the same run."),
    (
        "plan_paper",
        "The paper's recipe on slices and hosts",
        """`dsd plan` for rank 512 and batch 160, memory in GiB per chip with VAE and text encoders
beside the step. TPU rows are the TPU compiler's account; GPU rows are arithmetic.""",
    ),
    ("train_murder", "Killed and resumed training", "A run killed at random moments."),
    (
        "overfit",
        "Eight pairs, overfitted",
        """Mean difference of pixels (0 to 255) of every sampled target from its own target and from
the nearest of the other seven. The pictures: [overfit.png](overfit.png).""",
    ),
    ("loader", "The loader", "Pairs per second against a torch DataLoader in the same run."),
    (
        "requests_throughput",
        "The request layer",
        """Questions to a server of this machine that answers after 300 ms, 64 at once; the ideal is
64 / 0.3 s. Client and server share the machine's cores, with whatever else runs there.""",
    ),
    (
        "make_murder",
        "Killed and restarted making of a dataset",
        """Captions to packed dataset through both real clients and an unreliable server of this
machine, with drawn grids. An attempt without an answer was cut off by the server, after billing, or
by the kill; undisturbed, the bill is exactly what the ledgers say.""",
    ),
    (
        "make_cost",
        "The arithmetic of 400,000 pairs: questions",
        """Assumed yields and tokens, as the script states them; prices of the table in
`dsd_jax/llm/prices.toml`.""",
    ),
    (
        "make_cost_teacher",
        "The arithmetic of 400,000 pairs: the teacher",
        "FLOPs of a 1024 x 1024 grid in 28 steps, and an assumed share of the peak; not measured.",
    ),
    (
        "grid_check",
        "The check of grids",
        """Drawn 2x2 grids in six styles, at six sizes, good ones and ones with a known fault. Of a
kind: how many were accepted; recall, how many were judged rightly (a good one with each box inside
its panel, a fault by its name); precision, of all that got the name of the kind, how many had it.
Of sizes, styles and all: recall, how many of the good grids were accepted and cut rightly;
precision, how many of the accepted ones were that. The check was tuned on other seeds.""",
    ),
    (
        "toy_world",
        "The judge of the toy world",
        """Random subjects in random scenes, drawn and then spoilt; a subject is right if shape,
both colours and marking are, a scene if background and place are. Wrong: something that was told is
not so.""",
    ),
    (
        "toy_latents",
        "When the toy text decides",
        """Latents of two pictures that differ in one word, and the time above which x_t does not
tell them apart any more (d' = 2, right in 84 % of the cases), so that the text has to.""",
    ),
    (
        "toy_teacher",
        "The toy teacher",
        """Pictures that the shipped toy FLUX paints, as the pixel judge sees them; what is unclear
counts as not right. The same: all of the subject is seen in both panels and agrees. Grids that are
cut: the check of grids finds four panels. `dsd_jax/toy/flux/README.md` says how it is made.""",
    ),
    (
        "toy_beside",
        "The toy teacher beside a given picture",
        """The cases of the study below, painted by the teacher itself: the left half is the
reference, clean at every step, and the words do not name the subject. This is what a student of it
can build on. Loss: of the right half's velocity at one time, for the drawing that would be right.
Shape to marking: shares of pictures in which the judge sees the reference's.""",
    ),
    (
        "toy_study",
        "Self-distillation on the toy world",
        """The same cases and noise for every row: a subject that nothing was trained on, shown in
one scene and asked for in another. Identity: shape, both colours and marking are right; prompt:
background and place are; both: all of them; copied: background and place of the reference were
kept. Means, and 95 % bootstrap intervals over cases. The teacher gets the text alone, which does
not name the subject. Not curated: the same budget on every pair that was put before the judge.
Goals: identity and prompt 0.80 after the quickstart, 0.95 after the longer run (285 of 300), with
at most 0.02 copied; subjects seen and held out within 0.05.""",
    ),
    (
        "toy_study_guidance",
        "True guidance on the toy world",
        "Image and text scale of the student; the plot: [toy_guidance.png](toy_guidance.png).",
    ),
)


def condensed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parity rows with the parameters of one model (paths with dots) as their worst one."""
    kept: list[dict[str, Any]] = []
    worst: dict[str, dict[str, Any]] = {}
    for row in rows:
        if "compared" not in row or "." not in row["compared"]:
            kept.append(row)
        elif row["model"] not in worst:
            worst[row["model"]] = row
            kept.append(row)
        elif float(row["error"]) / float(row["bound"]) > (
            float(worst[row["model"]]["error"]) / float(worst[row["model"]]["bound"])
        ):
            kept[kept.index(worst[row["model"]])] = row
            worst[row["model"]] = row
    return kept


def section(result: dict[str, Any], title: str, text: str) -> str:
    """One section of the page."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    settings = ", ".join(f"{key} {value}" for key, value in result["settings"].items())
    command = f"`python -m benchmarks.{script_of(result['benchmark'])}`, {result['date']}"
    lines = [
        f"## {title}",
        "",
        text,
        "",
        table(condensed(result["rows"])),
        "",
        "; ".join(filter(None, [command, result["hardware"], versions, settings])) + ".",
    ]
    return "\n".join(lines)


def script_of(benchmark: str) -> str:
    """The script behind a result: its name, less the preset."""
    scripts = {path.stem for path in Path(__file__).parent.glob("*.py")}
    return benchmark if benchmark in scripts else benchmark.rpartition("_")[0]


def main() -> None:
    """Writes the page from the results that there are."""
    parts = [
        "# Verification",
        "",
        """Every table is printed by the command below it; the results are in
`benchmarks/results/`. This page is written by `python -m benchmarks.report`.""",
    ]
    for name, title, text in SECTIONS:
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        if path.exists():
            parts += ["", section(json.loads(path.read_text()), title, text)]
    target = ROOT / "docs" / "verification.md"
    target.write_text("\n".join(parts) + "\n")
    print(f"wrote {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
