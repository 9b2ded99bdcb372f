"""The command line: `lmtop`, or `python -m lmtop`. Parses, then hands over to one function elsewhere."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from .engine.guard import guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 ok, 2 usage, 3 model, 4 history, 5 network, 6 device, 70 bug)."""
    _prepare_streams()
    return guarded(lambda: _dispatch(sys.argv[1:] if argv is None else argv))


def _prepare_streams() -> None:
    """A closed stream becomes /dev/null, and a character that the output's encoding lacks a question mark."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: PTH123, SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _dispatch(argv: Sequence[str]) -> int:
    from .engine.arguments import parse
    from .engine.faults import VARIABLES, Faults

    options = parse(argv)
    Faults.from_environment()  # refuses test hooks outside tests, before anything starts
    if hooks := [f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name)]:
        from .engine.text import one_line

        print(f"lmtop: TEST: {one_line(', '.join(hooks))}", file=sys.stderr)
    match options.command:
        case "generate":
            from .engine.generate import run_generate

            return run_generate(options)
        case "chat" if options.values["plain"]:
            from .engine.plain import run_plain

            return run_plain(options)
        case "serve":
            from .engine.server.run import hide_keys, run_serve

            hide_keys()
            if not options.values["tui"]:
                return run_serve(options)
            from .tui.parent import supervise

            return supervise(options)
        case "list":
            from .engine.listing import run_list

            return run_list(options)
        case "doctor":
            from .tui.doctor import run_doctor

            return run_doctor(options)
        case "kernels":
            from .engine.kernels_command import run_kernels

            return run_kernels(options)
        case "quantize":
            from .engine.quantize_command import run_quantize

            return run_quantize(options)
        case "convert":
            from .engine.convert_command import run_convert

            return run_convert(options)
        case "lite":
            from .engine.quantize_command import run_lite

            return run_lite(options)
        case "bench" if options.extra["serve_url"] is not None:
            from .engine.bench_serve import run_bench_serve

            return run_bench_serve(options)
        case "bench":
            from .engine.bench import run_bench

            return run_bench(options)
        case "web":
            from .tui.web import run_web

            return run_web(options)
        case "top" if options.values["json"]:
            from .tui.screens.top import top_json

            print(top_json())
            return 0
        case _:
            from .tui.parent import supervise

            return supervise(options)


if __name__ == "__main__":
    sys.exit(main())
