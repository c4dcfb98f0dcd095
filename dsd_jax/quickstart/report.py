"""Writes the report of a quickstart as a web page."""

from pathlib import Path

from dsd_jax.page import Card, Page, Picture
from dsd_jax.quickstart.findings import Example, Findings, Shown
from dsd_jax.toy.score import METRICS

__all__ = ["METRIC_NAMES", "write_report"]

METRIC_NAMES = {
    "identity": "same subject",
    "prompt": "scene as asked",
    "both": "both",
    "copied": "scene copied",
}
_MEANINGS = (
    "Same subject: shape, both colours and marking are those of the reference. Scene as asked: "
    "background and place are those of the text. Scene copied: they are those of the reference. In "
    "brackets the 95 % interval over cases (bootstrap)."
)


def write_report(findings: Findings, path: Path, view: Path | None = None) -> None:
    """Writes the page.

    Args:
        findings: The contents.
        path: The file.
        view: A page with all grids and pairs, in the same folder, to link to.

    Raises:
        UserError: It cannot be written.
    """
    page = Page("dsd quickstart")
    page.text(
        "A teacher painted grids of one subject, a judge kept the pairs that show the same "
        "subject, and the teacher was fine-tuned on those pairs. The result is a customiser: it "
        f"gets a reference and a text. Here are its scores on {findings.cases} subjects that "
        "nothing was trained on, each asked for in a new scene."
    )
    page.table(
        [
            ("", *findings.scores),
            *(
                (METRIC_NAMES[metric], *(str(row[metric]) for row in findings.scores.values()))
                for metric in METRICS
            ),
        ]
    )
    page.text(_MEANINGS)
    page.heading("Before and after")
    page.text(
        "Left is the reference. The middle is what the teacher paints from the text alone, right "
        "what the customiser paints from text and reference. A green frame means that subject and "
        "scene are both right."
    )
    page.cards([_example(example) for example in findings.examples])
    page.heading("The teacher's grids")
    page.cards([_card(shown) for shown in findings.grids])
    page.heading("Pairs that the judge kept")
    page.cards([_card(shown) for shown in findings.kept])
    page.heading("Pairs that were rejected")
    page.cards([_card(shown) for shown in findings.rejected])
    if view is not None:
        page.link("All grids, all pairs and every answer of the judge", view.name)
    page.heading("Yields")
    page.table([("", "count"), *((name, f"{n:,}") for name, n in findings.counts.items())])
    page.heading("Training loss")
    page.curve(findings.losses, "step", "loss")
    page.heading("The commands")
    page.text(
        "With FLUX.1-dev as base_path and a provider in the configuration, the same commands make "
        "a dataset and a customiser of real pictures."
    )
    page.code([f"{command}    # {seconds:.0f} s" for command, seconds in findings.commands])
    for note in findings.notes:
        page.text(note)
    page.write(path)


def _card(shown: Shown) -> Card:
    return Card([Picture(picture) for picture in shown.pictures], shown.words)


def _example(example: Example) -> Card:
    return Card(
        [
            Picture(example.reference, "reference"),
            Picture(example.before, "before"),
            Picture(example.after, "after", marked=example.right),
        ],
        example.text,
    )
