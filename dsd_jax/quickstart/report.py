"""Writes the report of a quickstart as a web page."""

from pathlib import Path

from dsd_jax.page import Card, Page, Picture
from dsd_jax.quickstart.findings import Example, Findings, Scored, Shown

__all__ = ["METRIC_NAMES", "write_report"]

METRIC_NAMES = {
    "identity": {
        "identity": "same subject",
        "prompt": "scene as asked",
        "both": "both",
        "copied": "scene copied",
    },
    "relight": {
        "identity": "same subject",
        "light": "light as asked",
        "colours": "colours kept",
        "drift": "drift in pixels",
    },
    "depth": {"order": "depth as asked", "prompt": "rest as asked"},
}
"""Names of the metrics of each task."""
_ABOUT = {
    "identity": (
        "A new scene: the reference shows a subject, and the text asks for it on another "
        "background and in another place. The teacher paints from the text alone. Same subject: "
        "shape, both colours and marking are those of the reference. Scene as asked: background "
        "and place are those of the text. Scene copied: they are those of the reference."
    ),
    "relight": (
        "A new light: the text asks for the scene of the reference in another light. Light as "
        "asked: tint, side and strength are those of the text. Colours kept: under that light, "
        "subject and background have the colours of the reference. Drift: shift of the picture "
        "against the reference, the median over images."
    ),
    "depth": (
        "A depth map: the reference shows how near everything is, and the text says what it is. "
        "Depth as asked: shape, place, size and tilt of the subject, and the horizon, are those of "
        "the map. Rest as asked: colours, marking and background are those of the text."
    ),
}


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
        "A teacher painted grids of one subject, a judge kept the pairs that fit, and the teacher "
        "was fine-tuned on those pairs. The result is a customiser: it gets a reference and a "
        "text. Below are its scores on subjects that nothing was trained on, in brackets the 95 % "
        "interval over cases (bootstrap). A green frame marks a picture of the student that is "
        "right in everything that was asked for."
    )
    for scored in findings.scored:
        _write_task(page, scored)
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


def _write_task(page: Page, scored: Scored) -> None:
    page.heading(f"{scored.task.capitalize()}: {scored.cases} cases")
    page.text(_ABOUT[scored.task])
    rows = (
        (name, *(str(intervals[metric]) for intervals in scored.scores.values()))
        for metric, name in METRIC_NAMES[scored.task].items()
    )
    page.table([("", *scored.scores), *rows])
    page.cards([_example(example) for example in scored.examples])


def _card(shown: Shown) -> Card:
    return Card([Picture(picture) for picture in shown.pictures], shown.words)


def _example(example: Example) -> Card:
    teacher = [] if example.before is None else [Picture(example.before, "teacher")]
    pictures = [
        Picture(example.reference, "reference"),
        *teacher,
        Picture(example.after, "student", marked=example.right),
    ]
    return Card(pictures, example.text)
