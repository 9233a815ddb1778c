"""The command ``flt completion``, which prints a script with which a shell completes commands, keys and choices."""

from __future__ import annotations

from collections.abc import Sequence

from flt.cli import conf_comments
from flt.cli.commands import COMMANDS
from flt.core.errors import InputError
from flt.run.conf_groups import choices, groups

HELP = """\
usage: flt completion bash|zsh|fish

Prints a script that completes commands, keys and choices. To load it:

  bash   source <(flt completion bash)          in ~/.bashrc
  zsh    source <(flt completion zsh)           in ~/.zshrc, after compinit
  fish   flt completion fish | source           in ~/.config/fish/config.fish"""
PATHS = ("data", "data.path", "data.test_path", "model", "resume", "root", "out")
"""Keys whose value can be a path. For these keys, the script also completes file names."""

BASH = """\
# Completion of flt for bash: source <(flt completion bash)
_flt() {
    local line=${COMP_LINE:0:COMP_POINT} command=${COMP_WORDS[1]} words= before= key=
    local current=${line##*[[:space:]]}
    COMPREPLY=()
    if [[ $current == *=* ]]; then
        key=${current%%=*} current=${current#*=}
        case $key in
@values@
        esac
        # The values of a sweep are separated by commas, and the last one is completed.
        [[ $current == *,* ]] && before=${current%,*},
        [[ $COMP_WORDBREAKS == *=* ]] || before=$key=$before
        COMPREPLY=($(compgen -P "$before" -W "$words" -- "${current##*,}"))
        return
    fi
    if ((COMP_CWORD == 1)); then
        words="@commands@ @keys@"
    else
        case $command in
@arguments@
            *) words="@keys@" ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    [[ ${COMPREPLY[*]} == *= ]] && compopt -o nospace 2>/dev/null
}
complete -o default -F _flt flt
"""

ZSH = """\
#compdef flt
# Completion of flt for zsh: source <(flt completion zsh)
_flt() {
    local key
    if [[ $PREFIX == *=* ]]; then
        key=${PREFIX%%=*}
        compset -P '*[=,]'
        case $key in
@values@
        esac
        return
    fi
    if ((CURRENT == 2)); then
        compadd -- @commands@
    else
        case $words[2] in
@arguments@
        esac
    fi
    compadd -S '' -- @keys@
}
compdef _flt flt
"""

FISH = """\
# Completion of flt for fish: flt completion fish | source
complete -c flt -f
complete -c flt -n __fish_use_subcommand -a "@commands@"
@arguments@
complete -c flt -n "not __fish_seen_subcommand_from @plain@" -a "@keys@ @pairs@"
complete -c flt -n "string match -qr '^(@paths@)=' -- (commandline -ct)" -F
"""


def run(arguments: Sequence[str]) -> int:
    """Prints the script for a shell.

    Raises:
        InputError: There isn't exactly one argument, or the argument isn't bash, zsh or fish.
    """
    scripts = {"bash": bash, "zsh": zsh, "fish": fish}
    if len(arguments) != 1 or arguments[0] not in scripts:
        raise InputError.of("completion", " ".join(arguments), scripts)
    print(scripts[arguments[0]](), end="")
    return 0


def bash() -> str:
    """Returns the script for bash."""
    values = [f'            {key}) words="{" ".join(words)}" ;;' for key, words in _values().items()]
    arguments = [f'            {command}) words="{" ".join(words)}" ;;' for command, words in _arguments().items()]
    return _filled(BASH, values="\n".join(values), arguments="\n".join(arguments))


def zsh() -> str:
    """Returns the script for zsh."""
    values = []
    for key, words in _values().items():
        values.append(f"            {key}) compadd -- {' '.join(words)}{'; _files' * (key in PATHS)} ;;")
    arguments = [f"            {name}) compadd -- {' '.join(words)}; return ;;" for name, words in _arguments().items()]
    return _filled(ZSH, values="\n".join([*values, "            *) _files ;;"]), arguments="\n".join(arguments))


def fish() -> str:
    """Returns the script for fish."""
    arguments = [
        f'complete -c flt -n "__fish_seen_subcommand_from {command}" -a "{" ".join(words)}"'
        for command, words in _arguments().items()
    ]
    pairs = " ".join(f"{key}={word}" for key, words in _values().items() for word in words)
    return _filled(
        FISH, arguments="\n".join(arguments), pairs=pairs, plain=" ".join(_arguments()), paths="|".join(PATHS)
    )


def _arguments() -> dict[str, list[str]]:
    """Returns command -> words that it accepts, for all commands but those that accept every key of ``flt train``."""
    found = {"help": [name for name, about in COMMANDS.items() if about.summary]}
    for name, about in COMMANDS.items():
        keys = [*about.keys, *(_keys() if about.takes_settings else [])]
        words = [*about.words, *(key if key.endswith(".") else f"{key}=" for key in keys)]
        words += [*["last"] * about.takes_runs, *(groups() if name == "list" else [])]
        if words:
            found[name] = words
    return found


def _values() -> dict[str, list[str]]:
    """Returns key -> values to complete. The keys are the config groups, the flags (true or false), and ``resume``."""
    flags = {key.name: ["false", "true"] for key in conf_comments.all_keys() if key.default in ("false", "true")}
    return {**{group: choices(group) for group in conf_comments.defaults()}, **flags, "resume": ["last"]}


def _keys() -> list[str]:
    """Returns the config groups and all keys of ``flt train``."""
    return [*conf_comments.defaults(), *(key.name for key in conf_comments.all_keys())]


def _filled(script: str, **parts: str) -> str:
    """Returns a script in which each mark ``@name@`` is replaced by its text."""
    parts |= {"commands": " ".join(COMMANDS), "keys": " ".join(f"{key}=" for key in _keys())}
    for name, text in parts.items():
        script = script.replace(f"@{name}@", text)
    return script
