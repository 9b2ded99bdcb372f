"""The flags of `lmtop convert`: a command's input, without variables and keys."""

from __future__ import annotations

import argparse

HELP = {  # of settings that mean something else to a conversion
    "weights": "bits of the layers' matrices in the result; auto is 16, and int4 where MODEL has it",
    "dtype": "type of what is not quantised; auto leaves it as it is stored",
}
NAMES = ("second", "out", "check", "force")


def add_convert(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", nargs="?", help="a directory, a hub id, or demo")
    command.add_argument("second", nargs="?", help=argparse.SUPPRESS)  # LMDeploy's: model_name model_path
    command.add_argument("--out", "--dst-path", dest="out", metavar="DIR", help="where the result goes")
    command.add_argument("--force", action="store_true", help="replace the model that is there")
    command.add_argument(
        "--check", metavar="DIR", help="no MODEL: compare a converted model's files with their checksums"
    )
