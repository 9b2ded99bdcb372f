"""What `lmtop bench --serve` takes of its own."""

from __future__ import annotations

import argparse

NAMES = (
    "serve_url",
    "serve_rates",
    "serve_prompts",
    "serve_seed",
    "serve_key_env",
    "serve_key_file",
    "serve_model",
)
EACH = 6  # requests for every stream, unless told otherwise


def add_bench_serve(command: argparse.ArgumentParser) -> None:
    """The flags of `bench --serve`."""
    flags = (
        ("--serve", "serve_url", "URL", "no MODEL: measure a server (--batch: streams at the same time)"),
        ("--request-rate", "serve_rates", "1,2,4", "with --serve: requests a second, at random moments"),
        (
            "--num-prompts",
            "serve_prompts",
            "N",
            f"with --serve: requests in each run ({EACH} for each stream)",
        ),
        ("--load-seed", "serve_seed", "N", "with --serve: which prompts and moments (0)"),
        ("--served-model", "serve_model", "NAME", "with --serve: which of the server's models (its first)"),
        ("--key-env", "serve_key_env", "NAME", "with --serve: the variable that holds the server's key"),
        ("--key-file", "serve_key_file", "PATH", "with --serve: the file that holds it, with mode 0600"),
    )
    for flag, dest, metavar, text in flags:
        command.add_argument(flag, dest=dest, metavar=metavar, help=text)
