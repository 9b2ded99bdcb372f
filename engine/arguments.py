"""The command line's grammar: `parse(argv)` gives a command and its settings, all sources merged.

Imports nothing heavy: `lmtop --help` answers before torch or textual could even be found on disk.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from . import settings
from .bench_serve_arguments import NAMES as BENCH_SERVE_NAMES
from .bench_serve_arguments import add_bench_serve
from .config import EngineConfig
from .connect_arguments import NAMES as CONNECT_NAMES
from .connect_arguments import add_connect, add_web
from .convert_arguments import HELP as CONVERT_HELP
from .convert_arguments import NAMES as CONVERT_NAMES
from .convert_arguments import add_convert
from .quantize_arguments import NAMES as QUANTIZE_NAMES
from .quantize_arguments import add_lite, add_quantize
from .settings import CHAT, ENGINE, GENERATE, HISTORY, MODELS, OUTPUT, SAMPLING, SERVER, TOP, UI, Setting
from .types import GREEDY, SamplingParams, UsageError

# What `bench` asks a list of, or works out itself, is no setting there.
_BENCH = tuple(
    setting
    for setting in ENGINE
    if setting.name not in ("weights", "kv", "quant_policy", "session_len", "max_batch_size")
)
_MAKING = tuple(setting for setting in ENGINE if setting.name in ("device", "threads"))
_CONVERTING = tuple(
    replace(setting, help=CONVERT_HELP.get(setting.name, setting.help))
    for setting in ENGINE
    if setting.name in ("weights", "dtype", "threads")
)
_START = (*ENGINE, *SAMPLING, *UI, *HISTORY, *MODELS)  # flags of the start screen, without a command
COMMANDS = {
    "chat": ("chat with MODEL, with live gauges", (*CHAT, *_START)),
    "generate": (
        "one reply to standard output, for scripts and pipes",
        (*GENERATE, *OUTPUT, *ENGINE, *SAMPLING, *MODELS),
    ),
    "serve": (
        "serve MODEL over HTTP: OpenAI's API and LMDeploy's",
        (*SERVER, *ENGINE, *MODELS, *(setting for setting in UI if setting.name != "low_bandwidth")),
    ),
    "connect": (
        "chat with a model on a server: lmtop's, vLLM's, any OpenAI-compatible one",
        (*SAMPLING, *UI, *HISTORY),
    ),
    "web": (
        "the same in a browser, as a client of SERVER",
        tuple(setting for setting in UI if setting.name == "theme"),
    ),
    "top": ("the monitor alone: GPUs, memory, processes", (*OUTPUT, *UI, *TOP)),
    "list": ("the models found on this machine", (*OUTPUT, *MODELS)),
    "doctor": ("what this machine offers lmtop, and what is missing", (*OUTPUT, *MODELS, *HISTORY)),
    "bench": ("how fast MODEL runs: batch, prompt, weights, KV cache", (*OUTPUT, *_BENCH, *MODELS)),
    "kernels": ("compile every CUDA kernel; no GPU is needed", (*OUTPUT,)),
    "quantize": ("make a four-bit model of MODEL, in AWQ's layout", (*_MAKING, *MODELS)),
    "convert": (
        "pack MODEL once in the engine's own layout, to load at disk speed",
        (*_CONVERTING, *MODELS),
    ),
    "lite": ("the same under LMDeploy's names: auto_awq, calibrate", (*_MAKING, *MODELS)),
}


# Defaults that one command has of its own.
DEFAULTS: dict[str, dict[str, Any]] = {"serve": {"max_batch_size": 64}}
USAGE = {
    "chat": " MODEL",
    "serve": " MODEL",
    "connect": " [SERVER]",
    "web": " SERVER",
    "generate": " MODEL [PROMPT]",
    "bench": " MODEL",
    "quantize": " MODEL --out DIR",
    "lite": " METHOD MODEL",
    "convert": " MODEL --out DIR",
}
# Input has no variable and no key: what a single command is to answer, measure or compile.
INPUT = (
    "prompt",
    "prompt_ids",
    "batches",
    "prompts",
    "kvs",
    "weight_formats",
    "new_tokens",
    "repeat",
    "random_weights",
    "baseline",
    "tutorial",
    "csv",
    "arch",
    *QUANTIZE_NAMES,
    *CONVERT_NAMES,
    *CONNECT_NAMES,
    *BENCH_SERVE_NAMES,
)
POLICY_4 = "quant_policy 4 is an int4 KV cache here, as in LMDeploy since 0.4; before, the number meant int8"


@dataclass(frozen=True, slots=True)
class Options:
    """A parsed command line. `values` holds every setting by name, whichever source it came from; `extra` the
    command's own input (`INPUT`), as text or None."""

    command: str  # "" is the start screen
    model: str | None
    values: dict[str, Any]
    extra: dict[str, Any]

    def engine_config(self, model: str | None = None) -> EngineConfig:
        """The engine's part, for `model` or the one on the command line. UsageError names a bad value."""
        v = self.values
        return EngineConfig(
            model=model or self.model or "",
            device=v["device"],
            dtype=v["dtype"],
            weights=v["weights"],
            kv=v["kv"],
            head=v["head"],
            session_len=v["session_len"],
            max_batch_size=v["max_batch_size"],
            cache_max_entry_count=v["cache_max_entry_count"],
            cache_bytes=v["cache_size"],
            cache_block_seq_len=v["cache_block_seq_len"],
            max_prefill_token_num=v["max_prefill_token_num"],
            prefix_caching=v["prefix_caching"],
            overlap=v["overlap"],
            graphs=not v["eager"],
            reproducible=v["reproducible"],
            threads=v["threads"],
            folders=tuple(v["folders"]),
        )

    def sampling(self) -> SamplingParams:
        """The sampling part. `greedy` overrides temperature and filters."""
        v = self.values
        greedy = v["greedy"]
        return SamplingParams(
            temperature=GREEDY.temperature if greedy else v["temperature"],
            top_k=0 if greedy else v["top_k"],
            top_p=1.0 if greedy else v["top_p"],
            min_p=0.0 if greedy else v["min_p"],
            repetition_penalty=v["repetition_penalty"],
            presence_penalty=v["presence_penalty"],
            frequency_penalty=v["frequency_penalty"],
            seed=v["seed"],
            max_new_tokens=v["max_new_tokens"],
            stop=tuple(v["stop"]),
            logit_bias=tuple(v["logit_bias"]),
        )


def installed_version() -> str:
    """The version of the installed package; a checkout that is only on PYTHONPATH has none."""
    try:
        return version("lmtop")
    except PackageNotFoundError:
        return "(not installed)"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        if message.startswith("argument COMMAND: invalid choice"):  # most likely the name of a model
            message += "; to talk to a model: `lmtop chat MODEL`"
        raise UsageError(message)


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)


def parse(argv: Sequence[str]) -> Options:
    """Flags, environment and config.toml, merged. UsageError for anything wrong; --help and --version exit."""
    argv = serve_words(argv)
    literal = argv.index("--") if "--" in argv else len(argv)
    arguments = [*map(_dashes, argv[:literal]), *argv[literal:]]
    parser, commands = _parsers()
    known, rest = parser.parse_known_args(arguments)
    space = vars(known)
    command = space.pop("command") or ""
    if rest := _late_prompt(space, rest, argv[literal + 1 :]):
        commands.get(command, parser).error(f"unrecognized arguments: {' '.join(rest)}")
    extra: dict[str, Any] = {name: space.pop(name) for name in INPUT if name in space}
    model = space.pop("model", None)
    values = {setting.name: setting.default for setting in settings.ALL} | DEFAULTS.get(command, {})
    values |= settings.settle_kv(settings.from_file(settings.config_path()), lambda setting: setting.name)
    values |= settings.settle_kv(settings.from_environment(), lambda setting: setting.env)
    flags = {
        setting.name: _parsed(setting, space[setting.name])
        for setting in settings.ALL
        if space.get(setting.name) is not None
    }
    values |= settings.settle_kv(flags, lambda setting: setting.flag)
    if values["quant_policy"] == 4 and command in ("", "chat", "generate", "serve"):
        print(f"lmtop: {POLICY_4}", file=sys.stderr)
    return Options(command, model, values, extra)


def serve_words(argv: Sequence[str]) -> Sequence[str]:
    """LMDeploy's second words: `serve api_server MODEL` is `serve MODEL`, `serve api_client URL` is `connect URL`.
    UsageError for those whose place something else has taken."""
    if len(argv) < 2 or argv[0] != "serve":
        return argv
    gone = {
        "gradio": "serve gradio: the web page is gone; `lmtop serve MODEL` serves, `lmtop connect URL` chats",
        "triton_client": "serve triton_client: there is no Triton server any more; `lmtop connect URL` chats",
        "proxy": "serve proxy: lmtop has no proxy; any HTTP load balancer in front of the servers will do",
    }
    if argv[1] in gone:
        raise UsageError(gone[argv[1]])
    if argv[1] == "api_client":
        return ["connect", *argv[2:]]
    return [argv[0], *argv[2:]] if argv[1] == "api_server" else argv


def _parsed(setting: Setting, given: Any) -> Any:
    if isinstance(given, bool):
        return given
    if setting.many:
        return tuple(settings.parse(setting, text, setting.flag)[0] for text in given)
    return settings.parse(setting, given, setting.flag)


def _late_prompt(space: dict[str, Any], rest: list[str], literal: Sequence[str]) -> list[str]:
    """Take PROMPT from what argparse left over, which is where it ends up behind a flag: `generate MODEL --raw
    PROMPT`. `literal` is what came after `--`. Returns what is left over still."""
    rest = [argument for argument in rest if argument != "--"]
    if space.get("prompt", "") is None and rest and (rest[0] in literal or not rest[0].startswith("-")):
        space["prompt"] = rest.pop(0)
    return rest


def _dashes(argument: str) -> str:
    """LMDeploy's users know both spellings: --session_len is --session-len."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The whole grammar, and that of each command."""
    top = _Parser(
        prog="lmtop",
        description="Chat with a local LLM and watch the machine it runs on, in one terminal.",
        epilog="MODEL is a local Hugging Face directory, a hub id such as owner/name, or `demo` (built in). "
        f"Every flag but a command's input (--prompt-ids; what bench measures; --arch) is also a key in "
        f"{settings.config_path()} and a variable LMTOP_NAME. "
        "`lmtop COMMAND --help` lists the flags of a command.",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"lmtop {installed_version()}")
    top.set_defaults(command="")
    for setting in _START:
        _add(top, setting, hidden=True)
    choices = top.add_subparsers(dest="command", metavar="COMMAND", required=False)
    commands: dict[str, argparse.ArgumentParser] = {}
    for name, (help_text, used) in COMMANDS.items():
        command = commands[name] = choices.add_parser(
            name,
            help=help_text,
            description=f"{help_text[0].upper()}{help_text[1:]}.",
            usage=f"lmtop {name} [FLAG ...]{USAGE.get(name, '')}",
            formatter_class=_Help,
            allow_abbrev=False,
        )
        _own_arguments(name, command)
        for setting in used:
            own = DEFAULTS.get(name, {})
            _add(command, replace(setting, default=own[setting.name]) if setting.name in own else setting)
    return top, commands


_BENCH_INPUT = (
    ("--batch", "batches", "1,16,64", "requests at the same time (1,16,64)"),
    ("--prompt", "prompts", "64,2048", "tokens of a prompt (64,2048)"),
    ("--kv", "kvs", "16,int8,int4", "formats of the KV cache (16)"),
    ("--weights", "weight_formats", "16,int4", "formats of the weights (16)"),
    ("--new-tokens", "new_tokens", "N", "tokens to generate for each request (256)"),
    ("--repeat", "repeat", "N", "measure each N times and take the median (3)"),
    (
        "--random-weights",
        "random_weights",
        "CONFIG",
        "no MODEL: the shape of a config.json, or llama-3-8b or internlm2-1.8b, with random weights",
    ),
    ("--csv", "csv", "FILE", "write the table as CSV too"),
)


def _own_arguments(name: str, command: argparse.ArgumentParser) -> None:
    if name == "connect":
        add_connect(command)
    if name == "web":
        add_web(command)
    if name in ("chat", "generate", "serve"):
        command.add_argument("model", metavar="MODEL", help="a directory, a hub id, or demo")
    if name == "generate":
        command.add_argument(
            "prompt", metavar="PROMPT", nargs="?", help="the prompt (default: standard input)"
        )
        command.add_argument("--prompt-ids", metavar="1,2,3", help="token ids in place of text")
    if name == "bench":
        command.add_argument("model", metavar="MODEL", nargs="?", help="a directory, a hub id, or demo")
        for flag, dest, metavar, text in _BENCH_INPUT:
            command.add_argument(flag, dest=dest, metavar=metavar, help=text)
        command.add_argument(
            "--baseline", action="store_true", help="measure transformers' generate beside it"
        )
        add_bench_serve(command)
        command.add_argument(
            "--tutorial",
            action="store_true",
            help="the two tables of LMDeploy's tutorials: speed and memory by weights and KV cache",
        )
    if name == "quantize":
        add_quantize(command)
    if name == "lite":
        add_lite(command)
    if name == "convert":
        add_convert(command)
    if name == "kernels":
        command.add_argument(
            "--arch",
            metavar="75,90a,...",
            help="GPU architectures, or all, or auto: this machine's, all where no GPU can be used (auto)",
        )


def _add(parser: argparse.ArgumentParser, setting: Setting, hidden: bool = False) -> None:
    default = setting.default
    shown = (
        setting.help
        if default in (None, "", ()) or isinstance(default, bool)
        else f"{setting.help} ({default})"
    )
    help_text = argparse.SUPPRESS if hidden else shown.replace("%", "%%")
    flags = (setting.flag, *setting.aliases)
    if setting.kind is bool:
        parser.add_argument(
            *flags,
            dest=setting.name,
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=help_text,
        )
        return
    choices = "{" + ",".join(map(str, setting.choices)) + "}" if setting.choices else ""
    parser.add_argument(
        *flags,
        dest=setting.name,
        action="append" if setting.many else "store",
        default=argparse.SUPPRESS,
        metavar=choices or setting.metavar or "VALUE",
        help=help_text,
    )
