"""`dsd evaluate audit`: how far a judge can be trusted."""

from pathlib import Path

import tyro

from dsd_jax.infer.evaluate.audit import (
    ASPECTS,
    against_others,
    against_probes,
    against_swaps,
    channels,
    open_audited,
    with_itself,
)
from dsd_jax.infer.evaluate.audit_labels import against_labels, shortfalls
from dsd_jax.infer.evaluate.audit_report import audit_text, write_audit
from dsd_jax.infer.evaluate.labels import places_of, read_labels
from dsd_jax.infer.evaluate.printed import check_output
from dsd_jax.infer.evaluate.probes import write_probes

__all__ = ["audit", "probes"]


def audit(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    labels: Path | None = None,
    least: float = 0.75,
    aspects: tuple[str, ...] = ASPECTS,
    half_width: float = 0.02,
    output: Path | None = None,
) -> None:
    """Measure how far the judges of runs can be trusted.

    With labels of people: precision, recall, specificity, kappa, and the yield corrected for the
    judge's errors. Without: agreement of rounds, of both orders and of judges, and right answers on
    probes, if the runs have them.

    Args:
        runs: Folders of runs that judges have rated.
        labels: Folder of a study of mode same, or a table with the columns id, rater and label
            (yes, no or unsure).
        least: Part of its scale, above 0 and at most 1, from which a rating counts as a yes: with
            0.75, 3 of 4 and 8 of 10 do.
        aspects: Aspects to audit: those that ask whether the subject is the same. A protocol that
            lowers them for copies, such as dsd-debiased, must fail the probe `identical`.
        half_width: Half width of the interval of a precision that is wanted. The audit says how
            many labels that takes.
        output: File for the tables, .md or .json.
    """
    if output is not None:
        check_output(output)
    opened = open_audited(runs)
    answers = channels(opened, least, aspects)
    findings = []
    if labels is not None:
        people = read_labels(labels, places_of(opened))
        findings += against_labels(answers, people, opened)
    findings += with_itself(answers) + against_swaps(answers)
    findings += against_others(answers) + against_probes(answers)
    notes = shortfalls(findings, half_width)
    if labels is None:
        notes.append(
            "no labels of people were given, so nothing is known of precision and recall; collect "
            "some with `dsd evaluate study build --mode same`"
        )
    print("\n".join([audit_text(findings), "", *notes]).strip())
    if output is not None:
        write_audit(findings, notes, output)
        print(f"wrote {output}")


def probes(
    cases: tyro.conf.Positional[Path], output_dir: Path, count: int = 30, seed: int = 0
) -> None:
    """Make pictures with known answers from the references of a benchmark, as a run.

    Ask a judge about them with `dsd evaluate audit ask` or `dsd evaluate judge`; then `dsd evaluate
    audit` says how often it is right on each kind.

    Args:
        cases: Cases file from `dsd evaluate prepare`.
        output_dir: Folder for the run.
        count: Number of subjects. There is a probe of each kind for each of them.
        seed: Seed of all choices.
    """
    run = write_probes(cases, output_dir, count, seed)
    kinds = {case.tags["probe"] for case in run.cases}
    print(f"wrote {len(run.images)} probes of {len(kinds)} kinds to {output_dir}")
