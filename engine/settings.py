"""Every setting, once: its flag, its key in config.toml, its environment variable, default and help.

Precedence: flag, environment (`LMTOP_` + name), `config.toml`, default. Standard library and tomli only.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import tomli

from .text import one_line
from .types import UsageError

CONFIG_LIMIT = 1 << 20


def config_path() -> Path:
    """`$LMTOP_CONFIG`, else `config.toml` in the user's configuration directory."""
    named = os.environ.get("LMTOP_CONFIG")
    return Path(named) if named else Path(platformdirs.user_config_dir("lmtop")) / "config.toml"


def size(text: str) -> int:
    """Bytes from "8GiB", "512M" or a plain number. Binary multiples: G, GB and GiB all mean 2**30."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B)?\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError("a size such as 8GiB")
    return int(float(match[1]) * (1024 ** ("KMGT".find(match[2].upper()) + 1) if match[2] else 1))


def encodable(text: str) -> bool:
    """Whether `text` is Unicode throughout: an argument that is no UTF-8 reaches Python as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def sentence(text: str) -> str:
    """Text for the model, as it is."""
    if not encodable(text):
        raise ValueError("valid UTF-8")
    return text


def bias(text: str) -> tuple[int, float]:
    """A logit bias from "TOKEN_ID=BIAS"."""
    token, value = text.split("=")
    return int(token), float(value)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `parse` reads a flag or variable; `kind` is the TOML type; `many`: a list of values; `above`:
    `low` itself is not allowed."""

    section: str
    name: str
    parse: Callable[[str], Any]
    default: Any
    help: str
    kind: type | tuple[type, ...]
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    above: bool = False
    many: bool = False
    metavar: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        return "LMTOP_" + self.name.upper()

    @property
    def key(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def allowed(self) -> str:
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        if self.kind is bool:
            return "true or false"
        what = {int: "an integer", float: "a number", str: "text"}.get(
            self.kind if isinstance(self.kind, type) else float, "a value"
        )
        if self.many:
            what = "a list"
        if self.low is None:
            return what
        low, high = _exact(self.low), "" if self.high is None else _exact(self.high)
        if self.above:
            return f"{what} above {low}" + (f" and at most {high}" if high else "")
        return f"{what} from {low} to {high}" if high else f"{what}, at least {low}"

    def check(self, value: Any) -> bool:
        """Whether one value is of the right kind and in range."""
        if isinstance(value, bool) and self.kind is not bool:
            return False
        if self.choices and value not in self.choices:
            return False
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            low, high = self.low, self.high
            if math.isnan(value) or (high is not None and value > high):
                return False
            return low is None or value > low or (value == low and not self.above)
        return True


def _exact(bound: float) -> str:
    """A bound without the exponent that a large integer would get."""
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _int(section: str, name: str, default: int | None, help: str, **more: Any) -> Setting:
    return Setting(section, name, int, default, help, int, metavar="N", **more)


def _float(section: str, name: str, default: float | None, help: str, **more: Any) -> Setting:
    return Setting(section, name, float, default, help, (int, float), metavar="X", **more)


def _text(section: str, name: str, default: str | None, help: str, **more: Any) -> Setting:
    return Setting(section, name, str, default, help, str, **more)


def _flag(section: str, name: str, help: str, default: bool = False) -> Setting:
    return Setting(section, name, _boolean, default, help, bool)


def _boolean(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("true or false")


ENGINE = (
    _text("engine", "device", "auto", "where the engine runs", choices=("auto", "cpu", "cuda")),
    _text(
        "engine",
        "dtype",
        "auto",
        "type of activations, and of weights and KV cache that are not quantised",
        choices=("auto", "float32", "bfloat16", "float16"),
    ),
    _text(
        "engine",
        "weights",
        "auto",
        "bits of the layers' matrices; auto is 16, and int4 where the checkpoint has it (on the CPU: if RAM is short)",
        choices=("auto", "16", "int4"),
    ),
    _text("engine", "kv", "auto", "bits of the KV cache; auto is 16", choices=("auto", "16", "int8", "int4")),
    _int(
        "engine",
        "quant_policy",
        None,
        "LMDeploy's numbers for --kv: 0 is 16, 8 is int8, 4 is int4 (int8 before its release 0.4)",
        choices=(0, 4, 8),
    ),
    _text(
        "engine",
        "head",
        "auto",
        "bits of the last matrix; auto is 16, or the checkpoint's own int4",
        choices=("auto", "16", "int4"),
    ),
    _int("engine", "session_len", None, "context in tokens (default: the model's own)", low=16),
    _int("engine", "max_batch_size", 8, "requests that run at the same time", low=1, high=512),
    _float(
        "engine",
        "cache_max_entry_count",
        None,
        "KV cache: share of the free memory, or, from 1 on, a number of blocks (default: 0.8, on the CPU 0.25)",
        low=0,
    ),
    Setting(
        "engine",
        "cache_size",
        size,
        None,
        "KV cache in bytes, such as 8GiB; overrides the share",
        str,
        metavar="SIZE",
    ),
    _int("engine", "cache_block_seq_len", 64, "tokens in a KV block", choices=(16, 32, 64, 128)),
    _int("engine", "max_prefill_token_num", 2048, "most prompt tokens in one step", low=16, high=65536),
    Setting("engine", "prefix_caching", _boolean, True, "reuse KV blocks of equal beginnings", bool),
    _flag("engine", "eager", "on a GPU: launch decode steps kernel by kernel, without CUDA graphs"),
    _flag("engine", "reproducible", "same seed, same tokens, whatever else runs; slower with many requests"),
    Setting(
        "engine",
        "overlap",
        _boolean,
        None,
        "plan the next step while the device works on one (default: on a GPU)",
        bool,
    ),
    _int("engine", "threads", None, "CPU threads (default: by the model's size)", low=1, high=1024),
)

SAMPLING = (
    _flag("sampling", "greedy", "always the most likely token, whatever temperature and filters say"),
    _float("sampling", "temperature", 0.7, "randomness; 0 is greedy", low=0, high=2),
    _int("sampling", "top_k", 0, "sample from the k most likely tokens; 0 is off", low=0),
    _float(
        "sampling",
        "top_p",
        0.9,
        "sample from the most likely tokens that sum to p; 1 is off",
        low=0,
        high=1,
        above=True,
    ),
    _float(
        "sampling", "min_p", 0.0, "drop tokens less likely than p times the best; 0 is off", low=0, high=1
    ),
    _float(
        "sampling", "repetition_penalty", 1.0, "above 1 discourages tokens seen before", low=0.01, high=10
    ),
    _float(
        "sampling", "presence_penalty", 0.0, "subtracted once from tokens already generated", low=-2, high=2
    ),
    _float("sampling", "frequency_penalty", 0.0, "subtracted for each time generated", low=-2, high=2),
    _int("sampling", "seed", None, "same seed, same reply", low=-(2**63), high=2**63 - 1),
    _int(
        "sampling",
        "max_new_tokens",
        None,
        "longest reply in tokens (default: the rest of the context)",
        low=1,
    ),
    Setting(
        "sampling",
        "stop",
        sentence,
        (),
        "end the reply at this text (may be repeated)",
        str,
        many=True,
        metavar="TEXT",
    ),
    Setting(
        "sampling",
        "logit_bias",
        bias,
        (),
        "add to a token's logit (may be repeated)",
        str,
        many=True,
        metavar="ID=BIAS",
    ),
    Setting(
        "sampling",
        "meta_instruction",
        sentence,
        "",
        "system prompt",
        str,
        metavar="TEXT",
        aliases=("--system",),
    ),
)

UI = (
    _text("ui", "theme", "dark", "colour theme, by name", metavar="NAME"),
    _flag("ui", "ascii", "draw with ASCII characters only"),
    Setting("ui", "mouse", _boolean, True, "use the mouse", bool),
    _text("ui", "low_bandwidth", "auto", "fewer, larger screen updates", choices=("auto", "on", "off")),
)

HISTORY = (
    Setting("history", "save", _boolean, True, "keep conversations on disk", bool),
    _flag("history", "require_history", "end with code 4 instead of chatting without a usable history"),
    _text("history", "history_file", None, "the history database", metavar="FILE"),
)

MODELS = (
    Setting(
        "models",
        "folders",
        str,
        (),
        "look for models here too (may be repeated)",
        str,
        many=True,
        metavar="DIR",
    ),
)

CHAT = (
    _flag("chat", "plain", "a chat without screens: an empty line sends, `end` starts over, `exit` leaves"),
)

GENERATE = (_flag("generate", "raw", "continue the text itself: no chat template"),)

OUTPUT = (_flag("output", "json", "print one JSON document when done"),)

TOP = (_float("top", "interval", 1.0, "seconds between readings", low=0.1, high=60),)

SERVER = (
    _text(
        "server",
        "server_name",
        "127.0.0.1",
        "address to listen on; beyond this machine only with a key, or --no-auth",
        metavar="HOST",
        aliases=("--host",),
    ),
    _int(
        "server",
        "server_port",
        23333,
        "port to listen on; 0 takes a free one",
        low=0,
        high=65535,
        aliases=("--port",),
    ),
    _text(
        "server", "model_name", None, "what clients call the model (default: its own name)", metavar="NAME"
    ),
    _text(
        "server",
        "api_keys",
        None,
        "keys that clients must send, with commas between; better in the variable or in --api-key-file",
        metavar="KEY,KEY",
    ),
    _text(
        "server",
        "api_key_file",
        None,
        "keys, one on each line, in a file that only you can read",
        metavar="FILE",
    ),
    Setting("server", "auth", _boolean, True, "ask for a key wherever others can connect", bool),
    Setting(
        "server",
        "allow_hosts",
        str,
        (),
        "a name that clients may call this server by, beside its addresses (may be repeated)",
        str,
        many=True,
        metavar="HOST",
    ),
    Setting(
        "server",
        "allow_origins",
        str,
        (),
        "a web page's origin that may use this server, such as https://chat.example (may be repeated)",
        str,
        many=True,
        metavar="ORIGIN",
    ),
    _flag(
        "server", "ssl", "insist on TLS; it is on whenever SSL_KEYFILE and SSL_CERTFILE name the two files"
    ),
    _int("server", "max_queue", 128, "requests that wait for a slot; more get 503", low=0, high=65536),
    _float(
        "server",
        "drain",
        5.0,
        "seconds that open replies get to end in when the server stops",
        low=0,
        high=3600,
    ),
    _flag("server", "log_requests", "print one line for each request"),
    _flag("server", "tui", "show the monitor of the server in this terminal"),
)

ALL = (*ENGINE, *SAMPLING, *CHAT, *GENERATE, *OUTPUT, *UI, *TOP, *HISTORY, *MODELS, *SERVER)
BY_KEY = {setting.key: setting for setting in ALL}
KV_OF_POLICY = {0: "16", 4: "int4", 8: "int8"}  # LMDeploy's numbers since its release 0.4


def settle_kv(values: dict[str, Any], spelled: Callable[[Setting], str]) -> dict[str, Any]:
    """The values of one source, with quant_policy as the `kv` that it means: two names of one setting, so that the
    stronger source wins whichever it uses. UsageError when one source gives both and they differ."""
    policy = values.get("quant_policy")
    if policy is None:
        return values | {"quant_policy": None} if "kv" in values else values
    given, meant = values.get("kv", "auto"), KV_OF_POLICY[policy]
    if given not in ("auto", meant):
        kv, name = spelled(BY_KEY["engine.kv"]), spelled(BY_KEY["engine.quant_policy"])
        raise UsageError(f"{kv} = {given} and {name} = {policy} (which is {meant}): give only one of them")
    return values | {"kv": meant}


def from_environment(settings: Iterable[Setting] = ALL) -> dict[str, Any]:
    """Values of the variables that are set, by setting name. UsageError names the variable."""
    values: dict[str, Any] = {}
    for setting in settings:
        text = os.environ.get(setting.env)
        if text is None or text == "":
            continue
        values[setting.name] = parse(setting, text, setting.env)
    return values


def parse(setting: Setting, text: str, where: str) -> Any:
    """A flag's or variable's text as a value; UsageError names `where` and what is allowed."""
    parts = text.split(os.pathsep) if setting.many and where == setting.env else [text]
    out = []
    for part in parts:
        try:
            value = setting.parse(part)
        except (ValueError, TypeError):
            value = None
        if value is None or not setting.check(value):
            raise UsageError(f"{where} = {one_line(part, 60)!r}: must be {setting.allowed}")
        out.append(value)
    return tuple(out) if setting.many else out[0]


def from_file(path: Path) -> dict[str, Any]:
    """Values of `path`, by setting name; {} when there is no such file. UsageError names file, line and key."""
    name = one_line(str(path), 120)
    try:
        if not path.exists():
            return {}
        if not path.is_file():
            raise UsageError(f"{name}: cannot read: not a file")
        if path.stat().st_size > CONFIG_LIMIT:
            raise UsageError(f"{name}: larger than {CONFIG_LIMIT >> 20} MiB")
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not valid UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise UsageError(f"{name}: cannot read: {error.strerror}") from None
    try:
        document = tomli.loads(text)
    except (tomli.TOMLDecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"{name}: {one_line(str(error), 160)}") from None
    return _from_document(document, text, name)


def _from_document(document: Mapping[str, Any], text: str, name: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    sections = {setting.section for setting in ALL}
    for section, table in document.items():
        if section not in sections or not isinstance(table, dict):
            raise UsageError(
                f"{name}{_line(text, section)}: unknown section or key {section!r}{_near(section, sections)}"
            )
        for key, value in table.items():
            setting = BY_KEY.get(f"{section}.{key}")
            if setting is None:
                known = [s.name for s in ALL if s.section == section]
                raise UsageError(
                    f"{name}{_line(text, key)}: unknown key {key!r} in [{section}]{_near(key, known)}"
                )
            values[setting.name] = _typed(setting, value, f"{name}{_line(text, key)}: {key}")
    return values


def _typed(setting: Setting, value: Any, where: str) -> Any:
    items = value if setting.many and isinstance(value, list) else [value]
    if setting.many and not isinstance(value, list):
        raise UsageError(f"{where} = {one_line(repr(value), 60)}: must be a list")
    out = []
    for item in items:
        if not isinstance(item, setting.kind) or (isinstance(item, bool) and setting.kind is not bool):
            raise UsageError(f"{where} = {one_line(repr(item), 60)}: must be {setting.allowed}")
        if isinstance(item, str):
            item = parse(setting, item, where) if not setting.many else setting.parse(item)
        if not setting.check(item):
            raise UsageError(f"{where} = {one_line(repr(item), 60)}: must be {setting.allowed}")
        out.append(item)
    return tuple(out) if setting.many else out[0]


def _line(text: str, key: str) -> str:
    """ ":LINE:COLUMN" of the first line that names `key`, as far as a look at the text tells."""
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(rf"\s*\[?\s*[\"']?({re.escape(key)})\b", line):
            return f":{number}:{match.start(1) + 1}"
    return ""


def _near(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""
