"""`dsd evaluate study`: a blinded study of people, from its items to its results."""

import contextlib
from pathlib import Path
from typing import Annotated

import tyro

from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.printed import check_output
from dsd_jax.infer.evaluate.resampling import Resampling
from dsd_jax.infer.evaluate.runs import open_runs
from dsd_jax.infer.evaluate.study.analysis import analyse_study
from dsd_jax.infer.evaluate.study.answers import AnswerFile, read_answers
from dsd_jax.infer.evaluate.study.build import StudySettings, build_study
from dsd_jax.infer.evaluate.study.importer import import_answers
from dsd_jax.infer.evaluate.study.joined import check_runs, read_metrics, store_ratings
from dsd_jax.infer.evaluate.study.page import PAGE, Delivery, write_page
from dsd_jax.infer.evaluate.study.platforms import completion_address, write_addresses
from dsd_jax.infer.evaluate.study.record import Key, Study, read_study
from dsd_jax.infer.evaluate.study.report import analysis_text, write_analysis
from dsd_jax.infer.evaluate.study.server import StudyServer
from dsd_jax.terminal import facts_text

__all__ = ["analyse", "build", "export", "import_files", "serve"]

Runs = tyro.conf.Positional[tuple[Path, ...]]
Folder = tyro.conf.Positional[Path]
Settings = Annotated[StudySettings, tyro.conf.arg(name="")]

_PAGE = "page"


def build(runs: Runs, output_dir: Path, settings: Settings = StudySettings()) -> None:
    """Build a blinded study of the images of several methods.

    Its page is one HTML file, or a file and a folder of pictures. Which method made which picture
    stands in `key.json` alone: give raters `page`, never the folder around it.

    Args:
        runs: Folders of runs on the same cases.
        output_dir: New folder for the study.
    """
    study, key = build_study(open_runs(runs), output_dir, settings)
    write_page(output_dir, output_dir / _PAGE, Delivery())
    print(facts_text(_facts(study, key)))
    print(f"\nopen {output_dir / _PAGE / PAGE}, or run `dsd evaluate study serve {output_dir}`")


def _facts(study: Study, key: Key) -> list[tuple[str, str]]:
    sizes = sorted({len(items) for items in study.lists})
    shown: dict[str, int] = dict.fromkeys(key.methods, 0)
    for item in key.rated.values():
        for picture in item.shown:
            shown[picture.method] += 1
    counts = sorted(set(shown.values()))
    seconds = study.questions.seconds
    time = f"{max(sizes) * seconds / 60:.0f} minutes at {seconds:g} s"
    return [
        ("study", f"{study.id}, {study.mode}, seed {key.seed}"),
        ("cases", ", ".join(f"{name or 'all'}: {n} of {m}" for name, (m, n) in key.strata.items())),
        ("lists", f"{len(study.lists)}, one per rater"),
        ("items", f"{' or '.join(map(str, sizes))} per list, {time}"),
        ("methods", f"{len(key.methods)}, each shown {' or '.join(map(str, counts))} times"),
    ]


def serve(study: Folder, port: int = 8765, host: str = "127.0.0.1") -> None:
    """Serve a study on this machine, and append the answers to `answers.jsonl`.

    Every rater gets the list that fewest have. Raters may be named in the address: `?rater=anna`.
    Stop it with Ctrl-C; start it again to go on.

    Args:
        study: Folder of the study.
        port: Port of the server; 0 takes a free one.
        host: Address to listen on. Only this machine reaches the default; 0.0.0.0 lets the network
            in.
    """
    with AnswerFile(study) as file, StudyServer(study, file, host, port) as server:
        print(f"serving {study} at {server.address}; stop with Ctrl-C", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    rows = file.answers.rows
    print(f"stopped; saved answers: {len(rows)}, raters: {len(file.answers.lists)}")


def export(
    study: Folder,
    output_dir: Path,
    post: str = "",
    page_url: str = "",
    prolific_code: str = "",
    mturk: bool = False,
) -> None:
    """Write the page of a study as a folder for any host of static files.

    Without --post and --mturk, raters download their answers and send you the file. Read files with
    `dsd evaluate study import`.

    Args:
        study: Folder of the study.
        output_dir: Folder for the page. It holds nothing that tells methods apart.
        post: Address that takes the answers as JSON. One on another host than the page's must
            allow that host (CORS).
        page_url: Address of the page on its host. Lists of addresses for Prolific and Mechanical
            Turk are then written to the folder of the study.
        prolific_code: Completion code of the study at Prolific. It needs --post.
        mturk: Send the answers to Mechanical Turk at the end.
    """
    if prolific_code and not post:
        raise UserError("--prolific_code needs --post, or the answers stay on the raters' machines")
    completion = completion_address(prolific_code) if prolific_code else ""
    write_page(study, output_dir, Delivery(post, completion, mturk))
    print(f"wrote {output_dir / PAGE}")
    if page_url:
        for path in write_addresses(read_study(study), page_url, study):
            print(f"wrote {path}")


def import_files(study: Folder, files: Runs, partial: bool = False) -> None:
    """Import answers that reached you as files, and list all that do not count.

    Args:
        study: Folder of the study.
        files: Files of answers (.jsonl) from the page, results of Mechanical Turk (.csv), or the
            list of participants of Prolific (.csv), which says whose submission counts.
        partial: Import the good answers although others are refused.
    """
    found = import_answers(study, files, partial=partial)
    print(
        f"new answers: {found.new}, of {len(found.raters)} raters; there before: {found.repeated}"
    )
    for reason, count in found.refused.items():
        print(f"refused: {count} x {reason}")
    for rater in found.failed:
        print(f"rater {rater} failed an attention check; the answers are kept, but do not count")


def analyse(
    study: Folder,
    runs: tuple[Path, ...] = (),
    output: Path | None = None,
    write_ratings: bool = False,
    include_failed: bool = False,
    draws: int = 10_000,
    seed: int = 0,
) -> None:
    """Show what the raters of a study say, how far they agree, and how far metrics agree with them.

    Raters who failed an attention check are named and left out.

    Args:
        study: Folder of the study.
        runs: Runs of the study, whose metrics and judges are compared with the raters.
        output: File for all figures, .md or .json.
        write_ratings: Write the mean rating of each image to `runs`, for `dsd evaluate report`.
        include_failed: Count raters who failed an attention check too.
        draws: Number of draws of raters and cases for each interval.
        seed: Seed of the draws.
    """
    if output is not None:
        check_output(output)
    if write_ratings and not runs:
        raise UserError("--write_ratings needs the --runs that the ratings go to")
    if draws < 1:
        raise UserError(f"--draws is at least 1, got {draws}")
    answers = read_answers(study)
    if not answers.rows:
        raise UserError(f"nobody has answered {study} yet; run `dsd evaluate study serve {study}`")
    opened = open_runs(runs)
    check_runs(answers.key, opened)
    resampling = Resampling(draws=draws, seed=seed)
    found = analyse_study(answers, read_metrics(opened), resampling, include_failed=include_failed)
    print(analysis_text(found))
    if output is not None:
        write_analysis(found, output)
        print(f"wrote {output}")
    if write_ratings:
        count = store_ratings(answers, opened, include_failed=include_failed)
        print(f"wrote {count} ratings to {len(opened)} runs")
