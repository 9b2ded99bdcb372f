"""What the load dialog says of a checkpoint that is quantised already."""

from __future__ import annotations

from dataclasses import replace

from support.model_list import DEVICE, GPU, MODELS, survey_of

from lmtop.engine.config import EngineConfig
from lmtop.tui.plans import prediction, verdict
from lmtop.tui.render.glyphs import glyphs

LLAMA = MODELS[1].name
PLAIN = survey_of().sizes[LLAMA]
AWQ = replace(PLAIN, stored="float16", quantised="AWQ int4 g128", int4=((128, PLAIN.matrices),))


def words(config: EngineConfig, sizes: object, device: object) -> tuple[str, list[str]]:
    """The verdict, and the table's rows."""
    plan, rows = prediction(config, sizes, device, 120, glyphs(False))  # type: ignore[arg-type]
    said = "\n".join("".join(text for text, _ in row) for row in verdict(plan, 200))
    return said, ["".join(text for text, _ in row) for row in rows]


def test_four_bit_weights_are_named_and_chosen_on_a_gpu() -> None:
    said, rows = words(EngineConfig("m"), AWQ, GPU)
    assert "weights: AWQ int4 g128, as the checkpoint stores them" in said
    assert next(row for row in rows if row.startswith(glyphs(False).pointer)).split()[1] == "int4/fp16"


def test_what_is_dequantised_is_said() -> None:
    said, _ = words(EngineConfig("m"), AWQ, DEVICE)
    assert "AWQ int4 g128 weights are dequantised to bf16 at load: faster on a CPU" in said
    fp8 = replace(PLAIN, quantised="FP8 128x128")
    assert "FP8 128x128 weights are dequantised to bf16 at load" in words(EngineConfig("m"), fp8, GPU)[0]
    rounded = words(EngineConfig("m", weights="int4"), fp8, GPU)[0]
    assert "FP8 128x128 weights are dequantised to bf16 at load, then rounded to int4 g128" in rounded
    assert words(EngineConfig("m"), PLAIN, GPU)[0] == ""
