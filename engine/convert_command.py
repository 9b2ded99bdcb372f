"""`lmtop convert`: flags to a `Job`, its progress on the terminal, its outcome in a few lines."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import models
from .answer import say, show_loading
from .bar import Bar
from .converted import check_contents
from .listing import stored_as
from .quantize_work import gib
from .spec import read_spec
from .text import one_line
from .types import ModelState, UsageError

if TYPE_CHECKING:
    from .arguments import Options


def run_convert(options: Options) -> int:
    """Convert MODEL into --out, or check a converted one. Returns the exit code."""
    extra = options.extra
    if extra["check"] is not None:
        if options.model is not None or extra["out"] is not None:
            raise UsageError("--check takes no MODEL and no --out: it reads one directory")
        return _check(Path(extra["check"]).expanduser())
    if options.model is None:
        raise UsageError("convert needs a MODEL")
    if extra["out"] is None:
        raise UsageError("convert needs --out DIR: where the converted model goes")
    model = options.model
    if extra["second"] is not None:
        say(f"{one_line(model, 60)}: the kind of model is read from its files; the name is not needed")
        model = extra["second"]
    return _convert(options, model, Path(extra["out"]).expanduser())


def _convert(options: Options, model: str, out: Path) -> int:
    import torch

    from .arguments import installed_version
    from .convert import Job, convert_model

    values = options.values
    directory = models.locate(
        model,
        lambda share, text: show_loading(ModelState("loading", progress=share, message=text)),
        folders=values["folders"],
    )
    show_loading(ModelState("none"))  # clears its line
    if values["threads"]:
        torch.set_num_threads(values["threads"])
    name = models.display_name(model, directory)
    job = Job(
        directory=directory,
        out=out,
        name=name,
        release=installed_version(),
        weights=values["weights"],
        dtype=values["dtype"],
        force=options.extra["force"],
    )
    begun = time.monotonic()
    try:
        with torch.inference_mode(), Bar() as bar:
            outcome = convert_model(job, bar)
    except KeyboardInterrupt:
        say("stopped; nothing was kept")
        raise
    for notice in outcome.notices:
        say(notice)
    print(f"converted    {name}: {stored_as(outcome.files)}, in {time.monotonic() - begun:.1f} s")
    print(f"size         {gib(outcome.before)} -> {gib(outcome.after)}")
    print(f"lmtop chat {one_line(str(out), 200)}")
    return 0


def _check(directory: Path) -> int:
    files = read_spec(directory)
    with Bar() as bar:
        manifest, changed = check_contents(directory, lambda share: bar("checking", 100 * share, 100))
    for name in changed:
        say(
            f"{one_line(name, 80)}: is not what was copied from the original; that is no damage if you edited it"
        )
    size = gib(sum(size for size, _ in manifest.shards.values()))
    source = one_line(str(manifest.source.get("name", "n/a")), 60)
    shards = f"{len(manifest.shards)} shard{'s' if len(manifest.shards) > 1 else ''}"
    print(
        f"{one_line(str(directory), 200)}: whole: {stored_as(files)}, {size} in {shards}, made from {source}"
    )
    return 0
