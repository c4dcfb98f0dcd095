"""The command `dsd`: a table of commands, each loaded when it is called.

`dsd --help` and `dsd --version` answer from this file alone. A command is a function with typed,
documented parameters in one of the packages; tyro turns them into flags.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from dsd_jax import __version__

__all__ = ["COMMANDS", "Command", "main"]


class Command(NamedTuple):
    """One line of help, and the function behind it as `module:function`.

    `takes_words`: the function reads the words itself, because its flags depend on the first one.
    """

    summary: str
    target: str
    takes_words: bool = False


COMMANDS: dict[str, Command] = {
    "quickstart": Command(
        "the whole way on toy weights, with a score: about 10 minutes on two cores",
        "dsd_jax.quickstart.cli:quickstart",
    ),
    "generate": Command(
        "one image, or several, from a reference image and a text", "dsd_jax.infer.cli:generate"
    ),
    "batch": Command(
        "the same for every line of a manifest, sharded and resumable", "dsd_jax.infer.cli:batch"
    ),
    "data make": Command(
        "make a dataset of pairs by a configuration, all stages in order",
        "dsd_jax.data.cli_make:make",
    ),
    "data captions": Command(
        "sample captions without repeats, for the subjects", "dsd_jax.data.cli_make:captions"
    ),
    "data prompts": Command(
        "have a prompt for a grid of four written per caption", "dsd_jax.data.cli_make:prompts"
    ),
    "data grids": Command(
        "paint grids of four from the prompts of a dataset in the making",
        "dsd_jax.data.cli_grids:grids",
    ),
    "data pairs": Command(
        "cut the grids into panels, filter them, and make pairs", "dsd_jax.data.cli_grids:pairs"
    ),
    "data judge": Command(
        "have pairs judged: the identical subject, yes or no", "dsd_jax.data.cli_make:judge"
    ),
    "data caption": Command(
        "have the kept pairs described in words", "dsd_jax.data.cli_make:caption"
    ),
    "data pack": Command(
        "write the kept and described pairs as a dataset", "dsd_jax.data.cli_make:pack_dataset"
    ),
    "data status": Command("how far every stage of a making is", "dsd_jax.data.cli_make:status"),
    "data view": Command(
        "a page with grids, pairs and the judge's words, for a browser",
        "dsd_jax.data.cli_make:view",
    ),
    "data import": Command(
        "a table of images to a dataset of pairs", "dsd_jax.data.cli:import_dataset"
    ),
    "data stats": Command(
        "what is in a dataset: tasks, sizes, texts, subjects", "dsd_jax.data.cli:stats"
    ),
    "data verify": Command(
        "check every digest and every image of a dataset", "dsd_jax.data.cli:verify"
    ),
    "data encode": Command(
        "encode a dataset by the VAE once, for training", "dsd_jax.data.cli:encode"
    ),
    "train": Command(
        "fine-tune on pairs by a preset, on one device or many", "dsd_jax.train.cli:train", True
    ),
    "plan": Command(
        "what a preset needs on a slice that is not here", "dsd_jax.train.cli:plan", True
    ),
    "train plot": Command("draw the curves of a run", "dsd_jax.train.cli:plot"),
    "convert to-jax": Command(
        "PyTorch weights to an Orbax checkpoint", "dsd_jax.convert.cli:to_jax"
    ),
    "convert to-torch": Command(
        "weights to a diffusers folder or a BFL file", "dsd_jax.convert.cli:to_torch"
    ),
    "convert lora": Command("a LoRA file to PEFT or kohya names", "dsd_jax.convert.cli:lora"),
}

_HELP = ("-h", "--help")
_MISUSE = 2  # exit status of a wrong command line, as argparse and tyro have it
_INTERRUPTED = 130  # 128 + SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after `dsd`, by default those of the process.

    Returns:
        The exit status: 0 done, 2 a mistake of the user, 130 interrupted. Any other error, and
        with `--debug` every error, leaves as an exception with its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except Exception as error:
        if debug or not _is_user_error(error):
            raise
        return _refuse(str(error))


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["--version"]:
        print(f"dsd {__version__}")
        return 0
    name, rest = _split(words)
    if name in COMMANDS:
        _run(name, rest)
        return 0
    if rest[:1] and rest[0] in _HELP:
        print(_table(name))
        return 0
    if rest:
        return _refuse(_unknown(f"{name} {rest[0]}".strip()))
    print(_table(name), file=sys.stderr)
    return _refuse(f"`{_call(name)}` needs a command")


def _split(words: list[str]) -> tuple[str, list[str]]:
    """The longest command, or group of commands, that `words` begin with, and the other words."""
    name, rest = "", words
    while rest:
        longer = f"{name} {rest[0].replace('_', '-')}".strip()
        if not any(f"{command} ".startswith(f"{longer} ") for command in COMMANDS):
            break
        name, rest = longer, rest[1:]
    return name, rest


def _run(name: str, rest: list[str]) -> None:
    module, function = COMMANDS[name].target.split(":")
    command = getattr(importlib.import_module(module), function)
    if COMMANDS[name].takes_words:
        command(rest)
        return
    import tyro

    tyro.cli(
        command,
        args=rest,
        prog=_call(name),
        use_underscores=True,  # as the help shows them; hyphens are read too
        config=(tyro.conf.FlagCreatePairsOff,),  # `--save_frames` without `--no_save_frames`
    )


def _call(name: str) -> str:
    return f"dsd {name}".strip()


def _table(group: str) -> str:
    """The commands of a group, or all of them, one a line."""
    names = [name for name in COMMANDS if f"{name} ".startswith(f"{group} ".lstrip())]
    column = max(map(len, names)) + 2
    return "\n".join(
        [
            f"usage: {_call(group)} COMMAND [FLAGS]",
            "",
            *(f"  {name:{column}}{COMMANDS[name].summary}" for name in names),
            "",
            f"`{_call(names[0])} --help` lists the flags of a command, here of `{names[0]}`.",
            "`--debug` shows the traceback of an error; `dsd --version` the version.",
        ]
    )


def _unknown(name: str) -> str:
    # `dsd to-jax` means `dsd convert to-jax`: the last word of a command may stand for it.
    meant = {full.split()[-1]: full for full in COMMANDS} | {full: full for full in COMMANDS}
    close = difflib.get_close_matches(name, meant, n=1)
    hint = f" did you mean `{_call(meant[close[0]])}`?" if close else ""
    return f"unknown command `{_call(name)}`;{hint} `dsd --help` lists all commands"


def _is_user_error(error: Exception) -> bool:
    # A UserError can only come from code that has loaded its module already.
    errors = sys.modules.get("dsd_jax.errors")
    return errors is not None and isinstance(error, errors.UserError)


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return _MISUSE
