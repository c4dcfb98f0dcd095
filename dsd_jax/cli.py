"""The command `dsd`: a table of commands, each loaded when it is called.

`dsd --help` and `dsd --version` answer from this file alone. A command is a function with typed,
documented parameters in one of the packages; tyro turns them into flags.
"""

import importlib
import os
import select
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout, suppress
from io import StringIO, TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple

from dsd_jax import __version__
from dsd_jax.interrupt import StopsAtOnce, leave

__all__ = ["COMMANDS", "Command", "completion", "doctor", "main"]


class Command(NamedTuple):
    """One line of help, and the function that it stands for, as `module:function`.

    `takes_words`: the function reads the words itself, because its flags depend on the first one.
    """

    summary: str
    target: str
    takes_words: bool = False


# By what people do. A summary starts with a verb and fits a terminal of 80 columns.
COMMANDS: dict[str, dict[str, Command]] = {
    "Try it": {
        "quickstart": Command(
            "Run the whole method on toy weights in 10 minutes",
            "dsd_jax.quickstart.cli:quickstart",
        ),
    },
    "Generate images": {
        "generate": Command(
            "Generate images from a reference image and a text", "dsd_jax.infer.cli:generate"
        ),
        "batch": Command(
            "Generate an image for every row of a manifest", "dsd_jax.infer.cli:batch"
        ),
        "mask": Command("Find the steps that must run all blocks", "dsd_jax.infer.cli_mask:mask"),
        "serve": Command(
            "Serve images over HTTP, as OpenAI's interface has it", "dsd_jax.infer.serve.cli:serve"
        ),
        "story write": Command(
            "Write a story about the hero of a picture", "dsd_jax.infer.story.cli:write"
        ),
        "story draw": Command(
            "Paint the panels of a story and lay out its pages", "dsd_jax.infer.story.cli:draw"
        ),
    },
    "Make a dataset": {
        "data import": Command(
            "Turn a table of images into a dataset", "dsd_jax.data.cli:import_dataset"
        ),
        "data depth": Command(
            "Make pairs of images and their depth maps", "dsd_jax.data.cli_depth:depth"
        ),
        "data make": Command(
            "Run all stages below from one configuration file", "dsd_jax.data.cli_make:make"
        ),
        "data captions": Command(
            "Sample captions of subjects, without repeats", "dsd_jax.data.cli_make:captions"
        ),
        "data prompts": Command(
            "Write one four-panel grid prompt per caption", "dsd_jax.data.cli_make:prompts"
        ),
        "data grids": Command("Paint a grid for every prompt", "dsd_jax.data.cli_make:grids"),
        "data pairs": Command(
            "Cut grids into panels and panels into pairs", "dsd_jax.data.cli_make:pairs"
        ),
        "data judge": Command(
            "Ask whether both panels show the same subject", "dsd_jax.data.cli_make:judge"
        ),
        "data caption": Command(
            "Describe the kept pairs in words", "dsd_jax.data.cli_make:caption"
        ),
        "data pack": Command(
            "Write the kept pairs as a dataset", "dsd_jax.data.cli_make:pack_dataset"
        ),
    },
    "Look at a dataset": {
        "data status": Command("Show the progress of each stage", "dsd_jax.data.cli_make:status"),
        "data view": Command(
            "Write a web page with pairs, grids and judgements", "dsd_jax.data.cli:view"
        ),
        "data export": Command(
            "Write a dataset as Parquet or as a folder of images", "dsd_jax.data.cli:export"
        ),
        "data stats": Command(
            "Count tasks, sizes, texts, subjects, yields and costs", "dsd_jax.data.cli:stats"
        ),
        "data verify": Command("Check every digest and every image", "dsd_jax.data.cli:verify"),
        "data drift": Command(
            "Measure how far a picture's content moved in another", "dsd_jax.drift.cli:drift"
        ),
    },
    "Train": {
        "train": Command("Fine-tune on pairs, from a preset", "dsd_jax.train.cli:train", True),
        "train plot": Command("Draw the curves of a run", "dsd_jax.train.cli:plot"),
        "data encode": Command(
            "Run the VAE over a dataset once, before training", "dsd_jax.data.cli:encode"
        ),
        "plan": Command(
            "Compile a preset for hardware you do not have yet", "dsd_jax.train.cli:plan", True
        ),
    },
    "Evaluate": {
        "evaluate prepare": Command(
            "Turn a benchmark into a file of cases", "dsd_jax.infer.evaluate.cli:prepare"
        ),
        "evaluate generate": Command(
            "Generate the images of all cases", "dsd_jax.infer.evaluate.cli_generate:generate"
        ),
        "evaluate import": Command(
            "Make a run of the images of another method",
            "dsd_jax.infer.evaluate.cli:import_images",
        ),
        "evaluate score": Command(
            "Measure the images of runs by metrics on features",
            "dsd_jax.infer.evaluate.cli_score:score",
        ),
        "evaluate judge": Command(
            "Ask a vision-language model for scores",
            "dsd_jax.infer.evaluate.cli_judge:judge",
        ),
        "evaluate archive": Command(
            "Turn the archived ratings of DreamBench++ into runs",
            "dsd_jax.infer.evaluate.cli_report:archive",
        ),
        "evaluate calibrate": Command(
            "Measure a judge on images that people have rated",
            "dsd_jax.infer.evaluate.cli_judge:calibrate",
        ),
        "evaluate audit": Command(
            "Measure how far the judges of runs can be trusted",
            "dsd_jax.infer.evaluate.cli_audit:audit",
        ),
        "evaluate audit build": Command(
            "Draw judged pairs for people to label", "dsd_jax.data.cli_audit:build"
        ),
        "evaluate audit ask": Command(
            "Ask a judge whether images show their subject", "dsd_jax.data.cli_audit:ask"
        ),
        "evaluate audit probes": Command(
            "Make pictures with known answers, to test a judge",
            "dsd_jax.infer.evaluate.cli_audit:probes",
        ),
        "evaluate study build": Command(
            "Build a blinded study of people on several runs",
            "dsd_jax.infer.evaluate.cli_study:build",
        ),
        "evaluate study serve": Command(
            "Serve a study on this machine and keep the answers",
            "dsd_jax.infer.evaluate.cli_study:serve",
        ),
        "evaluate study export": Command(
            "Write a study's page for a host, Prolific or MTurk",
            "dsd_jax.infer.evaluate.cli_study:export",
        ),
        "evaluate study import": Command(
            "Read answers that came as files, and check them",
            "dsd_jax.infer.evaluate.cli_study:import_files",
        ),
        "evaluate study analyse": Command(
            "Show what raters say, and how far they agree",
            "dsd_jax.infer.evaluate.cli_study:analyse",
        ),
        "evaluate report": Command(
            "Write tables, intervals, gaps and a page about runs",
            "dsd_jax.infer.evaluate.cli_report:report",
        ),
        "evaluate demo": Command(
            "Run all of these commands on toy weights",
            "dsd_jax.quickstart.cli:evaluate_demo",
        ),
    },
    "Convert weights": {
        "convert to-jax": Command(
            "Convert PyTorch weights to an Orbax checkpoint", "dsd_jax.convert.cli:to_jax"
        ),
        "convert to-torch": Command(
            "Convert weights to a diffusers folder or a BFL file", "dsd_jax.convert.cli:to_torch"
        ),
        "convert lora": Command(
            "Convert a LoRA file, or export a training run", "dsd_jax.convert.cli:lora"
        ),
    },
    "Set up": {
        "doctor": Command("Show what this machine offers and lacks", "dsd_jax.cli:doctor"),
        "completion": Command(
            "Print a script that completes commands in a shell", "dsd_jax.cli:completion"
        ),
    },
    "Train the toy models": {
        "train toy-vae": Command(
            "Train the VAE from random weights", "dsd_jax.toy.making.cli:toy_vae"
        ),
        "train toy-teacher": Command(
            "Train the transformer from random weights", "dsd_jax.toy.making.cli:toy_teacher"
        ),
        "train toy-decoder": Command(
            "Train the decoder further, for the same latents", "dsd_jax.toy.making.cli:toy_decoder"
        ),
        "train toy-vision": Command(
            "Train the image encoder without labels", "dsd_jax.toy.making.cli:toy_vision"
        ),
        "train toy-student": Command(
            "Fine-tune on pairs, as quickstart does", "dsd_jax.toy.making.cli:toy_student", True
        ),
        "train toy": Command(
            "Fine-tune on pairs, all parameters", "dsd_jax.toy.making.cli:toy", True
        ),
    },
}

_HELP = ("-h", "--help")
_MISUSE = 2  # exit status of a wrong command line, as argparse and tyro have it
_NO_READER = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after `dsd`, by default those of the process.

    Returns:
        The exit status: 0 done; 2 a mistake that the user can correct, told in one line; 130
        interrupted; 141 nobody reads the output any more. Any other error, and with `--debug`
        every error, is raised with its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not debug:
        sys.excepthook = _main_thread_only
        sys.unraisablehook = _unraised_in_main_thread
    _print_anything()
    signals = StopsAtOnce()
    try:
        with signals:
            _check_words(words)
            status = _dispatch(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        if argv is None:
            leave(signals.status)
        return signals.status
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _without_reader():
            return _NO_READER
        message = None if debug else _explain(error)
        if message is None:
            raise
        _drop_unwritten()
        return _refuse(message)
    return status


def _print_anything() -> None:
    """Lets both outputs spell a letter that they cannot encode, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _check_words(words: list[str]) -> None:
    """Refuses arguments that no file of text could hold.

    Raises:
        UserError: a word holds bytes that are not UTF-8, in whatever encoding they are.
    """
    if any(not word.isascii() for word in words):
        from dsd_jax.text.plain import check_text

        for word in words:
            check_text(word, f"the argument {word!a}")


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["--version"]:
        print(f"dsd {__version__}")
        return 0
    name, rest = _split(words)
    commands = _commands()
    if name in commands:
        _run(name, commands[name], rest)
        return 0
    if rest[:1] and rest[0] in _HELP:
        print(_table(name))
        return 0
    if rest:
        return _refuse(_unknown(f"{name} {rest[0]}".strip()))
    print(_table(name), file=sys.stderr)
    return _refuse(f"`{_call(name)}` needs a command")


def _commands() -> dict[str, Command]:
    """Every command by its name."""
    return {name: command for group in COMMANDS.values() for name, command in group.items()}


def _split(words: list[str]) -> tuple[str, list[str]]:
    """The longest command, or group of commands, that `words` begin with, and the other words."""
    name, rest = "", words
    while rest:
        longer = f"{name} {rest[0].replace('_', '-')}".strip()
        if not any(f"{command} ".startswith(f"{longer} ") for command in _commands()):
            break
        name, rest = longer, rest[1:]
    return name, rest


def _run(name: str, command: Command, rest: list[str]) -> None:
    module, function = command.target.split(":")
    target = getattr(importlib.import_module(module), function)
    if command.takes_words:
        target(rest)
        return
    if os.environ.get("NO_COLOR"):
        os.environ["PYTHON_TYRO_ANSI_CODES"] = "False"  # tyro's own name for it, read when it loads
    from dsd_jax.flags import call

    call(target, rest, _call(name))


def _call(name: str) -> str:
    return f"dsd {name}".strip()


def _table(prefix: str) -> str:
    """The commands whose names begin with `prefix`, one a line, grouped by purpose."""
    lines, names = [f"usage: {_call(prefix)} COMMAND [FLAGS]"], []
    column = max(map(len, _commands())) + 2
    for title, group in COMMANDS.items():
        shown = [name for name in group if f"{name} ".startswith(f"{prefix} ".lstrip())]
        if shown:
            lines += ["", title, *(f"  {name:{column}}{group[name].summary}" for name in shown)]
            names += shown
    return "\n".join(
        [
            *lines,
            "",
            f"List the flags of a command with --help: `{_call(names[0])} --help`.",
            "Show the traceback of an error with --debug, the version with `dsd --version`.",
        ]
    )


def _unknown(name: str) -> str:
    from dsd_jax.errors import nearest

    # `dsd to-jax` means `dsd convert to-jax`: the last word of a command may stand for it.
    meant = {full.split()[-1]: full for full in _commands()} | {full: full for full in _commands()}
    close = nearest(name, meant)
    hint = f" did you mean `{_call(meant[close])}`?" if close else ""
    return f"unknown command `{_call(name)}`;{hint} `dsd --help` lists all commands"


def doctor(folder: Path = Path()) -> None:
    """Show devices, versions, disks, caches and logins, and what is missing for what.

    Args:
        folder: Folder whose disk is reported.
    """
    from dsd_jax.doctor import findings
    from dsd_jax.terminal import facts_text

    print(facts_text(findings(folder)))


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a script that completes the commands, flags and choices of `dsd` in a shell.

    Its first lines say where to put it.

    Args:
        shell: Shell that reads it: bash, zsh or fish.
    """
    from dsd_jax.completion import script

    print(script(shell, dict(_offers())))


def _offers() -> Iterator[tuple[str, dict[str, tuple[str, ...]]]]:
    """Every command, and what may follow it according to its help."""
    from dsd_jax.completion import offer_of

    for name in _commands():
        offer = offer_of(_help_of(name))
        yield name, offer
        presets = [] if "-h" in offer else list(offer)
        if presets:
            flags = offer_of(_help_of(f"{name} {presets[0]}"))
            yield from ((f"{name} {preset}", flags) for preset in presets)


def _help_of(name: str) -> str:
    """The help of a command, laid out wide enough for every flag."""
    out, columns = StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "110"  # tyro would use two columns of a much wider one
    try:
        with redirect_stdout(out), suppress(SystemExit):
            _dispatch([*name.split(), "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return out.getvalue()


def _explain(error: Exception) -> str | None:
    from dsd_jax.errors import explain

    return explain(error)


def _main_thread_only(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Keeps quiet about errors in the threads of libraries.

    When a disk is full, TensorStore's threads print a traceback for every write that was still
    under way, around the one message that says what happened.
    """
    if threading.current_thread() is threading.main_thread():
        sys.__excepthook__(kind, error, trace)


def _unraised_in_main_thread(found: "sys.UnraisableHookArgs") -> None:
    """Does the same for errors that those threads cannot even raise."""
    if threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(found)


def _without_reader() -> bool:
    """Whether the reader of our output has gone, such as `head` in `dsd data stats | head`."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # not a file
            pipe = select.poll()
            pipe.register(stream.fileno(), select.POLLOUT)
            if any(events & select.POLLERR for _, events in pipe.poll(0)):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
                gone = True
    return gone


def _drop_unwritten() -> None:
    """Drops output that cannot be written; otherwise Python complains about it when it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return _MISUSE
