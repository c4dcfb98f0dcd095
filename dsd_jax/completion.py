"""Completion of `dsd` in a shell: a script made from the commands and their help.

The script holds the words themselves and calls no program, so a key press waits for nothing.
"""

import re
from collections.abc import Mapping

__all__ = ["SHELLS", "Offer", "offer_of", "script"]

Offer = dict[str, tuple[str, ...]]
"""Word that may follow a command -> its values, if it is a flag with choices."""

_TABLES = """\
_dsd_words() {
    case "$1" in
@WORDS@
    esac
}
_dsd_values() {
    case "$1" in
@VALUES@
    esac
}"""

_BASH = """\
# Completion of dsd for bash:
#   dsd completion bash > ~/.local/share/bash-completion/completions/dsd
@TABLES@
_dsd() {
    local name="" word next values current="${COMP_WORDS[COMP_CWORD]}"
    local previous="${COMP_WORDS[COMP_CWORD-1]}"
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        next="${name:+$name }$word"
        [ -n "$(_dsd_words "$next")" ] || break
        name="$next"
    done
    values="$(_dsd_values "$name $previous")"
    [ -n "$values" ] || values="$(_dsd_words "$name")"
    COMPREPLY=($(compgen -W "$values" -- "$current"))
    [ ${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- "$current"))
}
complete -o filenames -F _dsd dsd
"""

_ZSH = """\
#compdef dsd
# Completion of dsd for zsh: dsd completion zsh > FOLDER/_dsd, with FOLDER in $fpath
@TABLES@
_dsd() {
    local name="" word next values
    for word in "${(@)words[2,CURRENT-1]}"; do
        next="${name:+$name }$word"
        [[ -n "$(_dsd_words "$next")" ]] || break
        name="$next"
    done
    values="$(_dsd_values "$name ${words[CURRENT-1]}")"
    [[ -n "$values" ]] || values="$(_dsd_words "$name")"
    compadd -- ${=values} || _files
}
if [[ "${funcstack[1]}" = _dsd ]]; then _dsd "$@"; else compdef _dsd dsd; fi
"""

_FISH = """\
# Completion of dsd for fish: dsd completion fish > ~/.config/fish/completions/dsd.fish
function __dsd_words
    switch "$argv[1]"
@WORDS@
    end
end
function __dsd_values
    switch "$argv[1]"
@VALUES@
    end
end
function __dsd
    set -l given (commandline -opc)
    set -l previous $given[-1]
    set -e given[1]
    set -l name ""
    for word in $given
        set -l next (string trim "$name $word")
        test -n "$(__dsd_words $next)"; or break
        set name $next
    end
    set -l values (__dsd_values "$name $previous")
    test -n "$values"; or set values (__dsd_words "$name")
    string split " " -- "$values"
end
complete -c dsd -a '(__dsd)'
"""

_FLAG = r"--?\w[\w.-]*"
_CHOICES = r"\{([^} ]+)\}"
SHELLS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def offer_of(help_text: str) -> Offer:
    """Reads the flags with their choices, or else the presets, out of a help text.

    Args:
        help_text: The help of a command, wide enough that no flag is wrapped.
    """
    offer: Offer = {}
    for line in help_text.splitlines():
        if named := re.match(rf"[│ ] +({_FLAG}(?:, {_FLAG})*)(?: {_CHOICES})?", line):
            choices = tuple(named[2].split(",")) if named[2] else ()
            offer |= dict.fromkeys(named[1].split(", "), choices)
        elif positional := re.match(rf"[│ ] +{_CHOICES}", line):
            offer |= dict.fromkeys(positional[1].split(","), ())
        elif preset := re.match(r"  ([a-z]\w*) {2,}\S", line):
            offer[preset[1]] = ()
    return offer


def script(shell: str, offers: Mapping[str, Offer]) -> str:
    """The completion script of a shell.

    Args:
        shell: A key of `SHELLS`.
        offers: Maps the name of a command, such as `data stats`, to the words that may follow it.
    """
    words: dict[str, list[str]] = {}  # offered words -> commands that offer them
    values: dict[str, list[str]] = {}
    for name, offer in _with_groups(offers).items():
        words.setdefault(" ".join(offer), []).append(name)
        for flag, choices in offer.items():
            if choices:
                values.setdefault(" ".join(choices), []).append(f"{name} {flag}")
    arm = _fish_arm if shell == "fish" else _posix_arm
    filled = SHELLS[shell].replace("@TABLES@", _TABLES)
    for mark, table in (("@WORDS@", words), ("@VALUES@", values)):
        filled = filled.replace(mark, "\n".join(arm(names, said) for said, names in table.items()))
    return filled


def _with_groups(offers: Mapping[str, Offer]) -> dict[str, Offer]:
    """Adds the first words of commands, after which their next words are offered."""
    whole: dict[str, Offer] = {}
    for name, offer in offers.items():
        parts = name.split()
        for depth, part in enumerate(parts):
            whole.setdefault(" ".join(parts[:depth]), {}).setdefault(part, ())
        whole.setdefault(name, {}).update(offer)
    return whole


def _posix_arm(names: list[str], said: str) -> str:
    pattern = "|".join(f'"{name}"' for name in names)
    return f'        {pattern}) echo "{said}" ;;'


def _fish_arm(names: list[str], said: str) -> str:
    pattern = " ".join(f"'{name}'" for name in names)
    return f"        case {pattern}\n            echo '{said}'"
