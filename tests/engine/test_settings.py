import os
from pathlib import Path

import pytest

from lmtop.engine import arguments, settings
from lmtop.engine.arguments import parse
from lmtop.engine.types import UsageError


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("LMTOP_"):
            monkeypatch.delenv(name)
    path = tmp_path / "config.toml"
    monkeypatch.setenv("LMTOP_CONFIG", str(path))
    return path


def test_flag_beats_environment_beats_file_beats_default(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse(["generate", "demo", "hi"]).values["top_k"] == 0
    config.write_text("[sampling]\ntop_k = 5\n")
    assert parse(["generate", "demo", "hi"]).values["top_k"] == 5
    monkeypatch.setenv("LMTOP_TOP_K", "6")
    assert parse(["generate", "demo", "hi"]).values["top_k"] == 6
    assert parse(["generate", "demo", "hi", "--top-k", "7"]).values["top_k"] == 7


def test_every_setting_is_reachable_as_flag_variable_and_key(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = {
        "device": "cpu", "dtype": "float32", "cache_block_seq_len": 32, "low_bandwidth": "on", "cache_size": "2GiB",
        "logit_bias": "7=1.5", "weights": "int4", "kv": "int8", "head": "int4",
        "quant_policy": 4,
    }  # fmt: skip
    for setting in settings.ALL:
        value = samples.get(setting.name)
        if value is None:
            value = {bool: "true", int: "17", str: "text"}.get(setting.kind, "1.5")  # type: ignore[call-overload]
        if setting.name in ("top_p", "min_p"):
            value = "0.5"
        monkeypatch.setenv(setting.env, str(value))
        by_variable = settings.from_environment([setting])[setting.name]
        monkeypatch.delenv(setting.env)
        number = setting.kind is not str and setting.kind is not bool
        literal = str(value) if number or setting.kind is bool else f'"{value}"'
        config.write_text(
            f"[{setting.section}]\n{setting.name} = {f'[{literal}]' if setting.many else literal}\n"
        )
        assert settings.from_file(config)[setting.name] == by_variable, setting.key
        flag = [setting.flag] if setting.kind is bool else [f"{setting.flag}={value}"]
        config.write_text("")
        places = {
            "server": ["serve", "m"],
            "top": ["top"],
            "chat": ["chat", "m"],
            "generate": ["generate", "m"],
            "output": ["list"],
        }
        command = places.get(setting.section, [])
        assert parse([*command, *flag]).values[setting.name] == by_variable, setting.key


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = ", ["config.toml: Invalid value"]),
        ("[sampling]\ntempreature = 1\n", ["config.toml:2:1", "tempreature", "did you mean 'temperature'"]),
        ("[sampling]\n\ntemperature = 'x'\n", [":3:1", "temperature", "a number from 0 to 2"]),
        ("[sampling]\ntemperature = 3\n", ["temperature = 3", "from 0 to 2"]),
        ("[sampling]\ntemperature = nan\n", ["temperature"]),
        ("[sampling]\ntop_k = true\n", ["top_k", "an integer"]),
        ("[engine]\nmax_batch_size = -1\n", ["max_batch_size = -1", "from 1 to 512"]),
        ("[engine]\ncache_size = 'lots'\n", ["cache_size"]),
        ("[engin]\n", ["engin", "did you mean 'engine'"]),
        ("temperature = 1\n", ["unknown section or key 'temperature'"]),
        ("[models]\nfolders = 'x'\n", ["folders", "a list"]),
        ("x = 1\nx = 2\n", ["config.toml"]),
    ],
)
def test_a_bad_file_is_one_line_with_file_place_key_and_what_is_allowed(
    config: Path, text: str, words: list[str]
) -> None:
    config.write_text(text)
    with pytest.raises(UsageError) as caught:
        parse(["list"])
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert config.read_text() == text


def test_files_that_are_no_text_are_refused(config: Path) -> None:
    config.write_bytes(b"[ui]\ntheme = '\xff'\n")
    with pytest.raises(UsageError, match="not valid UTF-8"):
        parse(["list"])
    config.write_bytes(b"a = '\0'")
    with pytest.raises(UsageError, match=r"config.toml"):
        parse(["list"])
    config.unlink()
    config.mkdir()
    with pytest.raises(UsageError, match="cannot read"):
        parse(["list"])


@pytest.mark.parametrize(
    "argv",
    [
        ["generate"],
        ["generate", "demo", "hi", "--top-q", "1"],
        ["generate", "demo", "hi", "--temperature"],
        ["generate", "demo", "hi", "--temperature", "hot"],
        ["generate", "demo", "hi", "--temperature", "2.5"],
        ["generate", "demo", "a", "b"],
        ["nothing"],
        ["chat", "demo", "--seed", "9223372036854775808"],
    ],
)
def test_a_bad_command_line_is_a_usage_error(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        parse(argv)


def test_underscores_and_dashes_are_the_same() -> None:
    one, two = parse(["chat", "demo", "--session_len=512"]), parse(["chat", "demo", "--session-len", "512"])
    assert one.engine_config() == two.engine_config()
    assert one.engine_config().session_len == 512


def test_a_negative_number_is_a_value() -> None:
    assert parse(["chat", "demo", "--presence-penalty", "-1.5"]).sampling().presence_penalty == -1.5


def test_greedy_switches_every_filter_off() -> None:
    sampling = parse(["generate", "demo", "hi", "--greedy", "--top-k", "3", "--seed", "4"]).sampling()
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0.0, 0, 1.0, 4)


CONNECT = "api-key-env api-key-file api-key ca-file model host port"  # of connect and web
QUANTIZE = """out work-dir search method head calib-dataset calib-samples calib-seqlen check-dataset w-bits
w-group-size w-sym force search-scale batch-size"""

CONVERT = "out force check dst-path"
SERVE_BENCH = "serve request-rate num-prompts load-seed served-model key-env key-file"


def test_every_flag_is_a_setting() -> None:
    _, commands = arguments._parsers()
    flags = {flag for command in commands.values() for flag in command._option_string_actions}
    known = {flag for setting in settings.ALL for flag in (setting.flag, *setting.aliases)}
    known |= {f"--no-{setting.name.replace('_', '-')}" for setting in settings.ALL if setting.kind is bool}
    own = {
        "--prompt-ids",
        "--batch",
        "--prompt",
        "--new-tokens",
        "--repeat",
        "--random-weights",
        "--baseline",
    }
    own |= {"--csv", "--arch", "--tutorial"}  # input, as PROMPT is
    own |= {f"--{name}" for name in QUANTIZE.split()}
    own |= {f"--{name}" for name in CONNECT.split()}
    own |= {f"--{name}" for name in SERVE_BENCH.split()}
    own |= {f"--{name}" for name in CONVERT.split()}
    assert flags - known == {"-h", "--help"} | (own - known)
    assert known - flags == set()


@pytest.mark.parametrize("name", ["greedy", "raw", "json"])
def test_switches_have_a_variable_and_a_flag_that_takes_it_back(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"LMTOP_{name.upper()}", "1")
    assert parse(["generate", "m", "hi"]).values[name] is True
    assert parse(["generate", "m", "hi", f"--no-{name}"]).values[name] is False


def test_greedy_from_the_environment_reaches_the_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMTOP_GREEDY", "1")
    assert parse(["chat", "m"]).sampling().temperature == 0
    monkeypatch.setenv("LMTOP_PLAIN", "yes")
    assert parse(["chat", "m"]).values["plain"] is True


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--seed", "1e40", "an integer from -9223372036854775808 to 9223372036854775807"),
        ("--top-p", "0", "a number above 0 and at most 1"),
        ("--top-p", "1.01", "a number above 0 and at most 1"),
        ("--interval", "61", "a number from 0.1 to 60"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_exact_range(flag: str, value: str, words: str) -> None:
    command = ["top"] if flag == "--interval" else ["generate", "m", "hi"]
    with pytest.raises(UsageError, match=f"{flag} = '{value}': must be {words}"):
        parse([*command, flag, value])


@pytest.mark.parametrize("command", ["generate", "list", "chat"])
def test_an_unknown_flag_shows_the_usage_of_its_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="unrecognized arguments: --nope"):
        parse([command, *(["m"] if command != "list" else []), "--nope"])
    assert capsys.readouterr().err.startswith(f"usage: lmtop {command} [FLAG ...]")


def test_sizes_are_binary() -> None:
    assert settings.size("8GiB") == settings.size("8G") == 8 << 30
    assert settings.size("1.5M") == 3 << 19
    assert settings.size("1000") == 1000


@pytest.mark.parametrize(
    "argv",
    [
        ["generate", "m", "hi", "--raw"],
        ["generate", "m", "--raw", "hi"],
        ["generate", "--raw", "m", "hi"],
        ["generate", "m", "--raw", "--", "hi"],
        ["generate", "--raw", "--", "m", "hi"],
        ["generate", "m", "--seed", "1", "hi", "--raw"],
    ],
)
def test_flags_may_stand_anywhere_around_model_and_prompt(argv: list[str]) -> None:
    options = parse(argv)
    assert (options.model, options.extra["prompt"], options.values["raw"]) == ("m", "hi", True)


def test_after_two_dashes_everything_is_literal() -> None:
    assert parse(["generate", "m", "--raw", "--", "--a_b"]).extra["prompt"] == "--a_b"
    assert parse(["chat", "--", "--a_b"]).model == "--a_b"
    for argv in (
        ["generate", "m", "--a_b"],
        ["generate", "m", "--", "a", "b"],
        ["chat", "m", "hi"],
        ["list", "x"],
    ):
        with pytest.raises(UsageError, match="unrecognized arguments"):
            parse(argv)


def test_text_for_the_model_must_be_unicode(config: Path) -> None:
    with pytest.raises(UsageError, match="--meta-instruction"):
        parse(["chat", "m", "--meta-instruction", "\udcff"])
    with pytest.raises(UsageError, match="--stop"):
        parse(["chat", "m", "--stop", "\udcff"])
    assert parse(["list", "--folders", "\udcff"]).values["folders"] == ("\udcff",)


def test_top_has_its_interval_from_every_source(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("[top]\ninterval = 2\n")
    assert parse(["top"]).values["interval"] == 2
    assert parse(["top", "--interval", "0.5"]).values["interval"] == 0.5
    with pytest.raises(UsageError, match=r"from 0\.1 to 60"):
        parse(["top", "--interval", "nan"])


def test_formats_reach_the_engine_from_every_source(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = parse(["chat", "m"]).engine_config()
    assert (asked.weights, asked.kv, asked.head) == ("auto", "auto", "auto")
    assert (asked.graphs, asked.overlap) == (True, None)
    config.write_text(
        '[engine]\nweights = "int4"\nkv = "int8"\nhead = "int4"\neager = true\noverlap = false\n'
    )
    asked = parse(["chat", "m"]).engine_config()
    assert (asked.weights, asked.kv, asked.head) == ("int4", "int8", "int4")
    assert (asked.graphs, asked.overlap) == (False, False)
    monkeypatch.setenv("LMTOP_KV", "int4")
    monkeypatch.setenv("LMTOP_EAGER", "no")
    asked = parse(["chat", "m", "--weights", "16", "--overlap"]).engine_config()
    assert (asked.weights, asked.kv, asked.graphs, asked.overlap) == ("16", "int4", True, True)


@pytest.mark.parametrize(
    ("file", "variables", "flags", "kv"),
    [
        ("", {}, ["--quant-policy", "0"], "16"),
        ("", {}, ["--quant-policy", "8"], "int8"),
        ("", {}, ["--quant-policy", "4"], "int4"),
        ("", {}, ["--quant-policy", "4", "--kv", "int4"], "int4"),
        ("", {}, ["--quant-policy", "8", "--kv", "auto"], "int8"),
        ("quant_policy = 8", {}, [], "int8"),
        ("quant_policy = 8", {}, ["--kv", "16"], "16"),
        ('kv = "int8"', {}, ["--quant-policy", "4"], "int4"),
        ('kv = "int8"', {"LMTOP_QUANT_POLICY": "0"}, [], "16"),
        ("quant_policy = 8", {"LMTOP_KV": "int4"}, [], "int4"),
        ("", {"LMTOP_QUANT_POLICY": "4"}, ["--kv=int8"], "int8"),
    ],
)
def test_quant_policy_is_another_name_of_kv(
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    variables: dict[str, str],
    flags: list[str],
    kv: str,
) -> None:
    config.write_text(f"[engine]\n{file}\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert parse(["chat", "m", *flags]).engine_config().kv == kv


def test_two_names_that_contradict_each_other_in_one_source_are_refused(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"--kv = int8 and --quant-policy = 4 \(which is int4\)"):
        parse(["chat", "m", "--kv", "int8", "--quant_policy", "4"])
    config.write_text('[engine]\nkv = "16"\nquant_policy = 8\n')
    with pytest.raises(UsageError, match="kv = 16 and quant_policy = 8"):
        parse(["list"])
    config.write_text("")
    monkeypatch.setenv("LMTOP_KV", "int4")
    monkeypatch.setenv("LMTOP_QUANT_POLICY", "0")
    with pytest.raises(UsageError, match="LMTOP_KV = int4 and LMTOP_QUANT_POLICY = 0"):
        parse(["chat", "m"])
    monkeypatch.delenv("LMTOP_KV")
    with pytest.raises(UsageError, match="--quant-policy = '2': must be one of 0, 4, 8"):
        parse(["chat", "m", "--quant-policy", "2"])


def test_the_changed_meaning_of_policy_4_is_said_once_and_only_where_it_is_used(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*argv: str) -> str:
        parse(argv)
        return capsys.readouterr().err

    assert said("generate", "m", "hi", "--quant-policy", "4").count("before, the number meant int8") == 1
    assert said("generate", "m", "hi", "--quant-policy", "8") == ""
    assert said("generate", "m", "hi", "--kv", "int4") == ""
    monkeypatch.setenv("LMTOP_QUANT_POLICY", "4")
    assert "int8" in said("chat", "m")
    assert said("chat", "m", "--kv", "int8") == said("top") == ""
