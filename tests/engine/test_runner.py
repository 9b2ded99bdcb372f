"""The runner with the real decoder on small random models: check 6, 7, 9, 10 at fp32, E2 through the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from support import llama, tiny

from lmtop.engine.model import Decoder
from lmtop.engine.runner import Launched, Runner
from lmtop.engine.types import GREEDY, RowOutput, RowStart, SamplingParams, StepPlan, TableDiff, Work

VOCAB = 200
POISON = 199
BLOCK = 16
CPU = torch.device("cpu")
WARM = SamplingParams(temperature=1.2, top_k=0, top_p=0.95, repetition_penalty=1.1, logprobs=3)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    of = llama.config(vocab=VOCAB, hidden=32)
    weights = llama.tensors(of)
    weights["model.embed_tokens.weight"][POISON] = torch.nan
    return tiny.load(llama.write(tmp_path_factory.mktemp("llama"), of, weights))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_runner(decoder: Decoder, max_batch: int = 8, num_blocks: int = 120) -> Runner:
    return Runner(
        decoder, max_batch=max_batch, num_blocks=num_blocks, block_size=BLOCK, max_context=256, vocab=VOCAB,
        device=CPU, eos_ids=(1,),
    )  # fmt: skip


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple(torch.randint(2, 190, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


@dataclass
class Row:
    """A sequence on a row: what its next work is."""

    row: int
    history: tuple[int, ...]
    sampling: SamplingParams = GREEDY
    seed: int = 0
    n_prompt: int = 0
    computed: int = 0
    blocks: list[int] = field(default_factory=list)


class Driver:
    """Plans by hand: rows start, prefill in chunks and decode; blocks are handed out in a scattered order."""

    def __init__(self, runner: Runner, num_blocks: int = 120) -> None:
        self.runner = runner
        self.free = [1 + (11 * i) % (num_blocks - 1) for i in range(num_blocks - 1)]
        self.step = 0
        self._starts: list[RowStart] = []
        self._tables: list[TableDiff] = []

    def begin(self, row: Row) -> Row:
        row.n_prompt = row.n_prompt or len(row.history)
        self._starts.append(
            RowStart(row.row, row.row, row.sampling, row.seed, row.history, row.n_prompt, row.n_prompt)
        )
        return row

    def _reserve(self, row: Row, tokens: int) -> None:
        needed = -(-tokens // BLOCK) - len(row.blocks)
        if needed > 0:
            fresh = [self.free.pop() for _ in range(needed)]
            self._tables.append(TableDiff(row.row, len(row.blocks), tuple(fresh)))
            row.blocks += fresh

    def launch(self, decode: list[Row], prefill: list[tuple[Row, int]] | None = None) -> Launched:
        works, chunks = [], []
        for row in decode:
            self._reserve(row, row.computed + 1)
            works.append(Work(row.row, 0, row.row, row.computed, 1, (), True))
            row.computed += 1
        for row, count in prefill or []:
            ids = row.history[row.computed : row.computed + count]
            self._reserve(row, row.computed + len(ids))
            ends = row.computed + len(ids) == len(row.history)
            chunks.append(Work(row.row, 0, row.row, row.computed, len(ids), ids, ends))
            row.computed += len(ids)
        plan = StepPlan(self.step, tuple(self._starts), tuple(self._tables), tuple(works), tuple(chunks))
        self.step += 1
        self._starts, self._tables = [], []
        return self.runner.launch(plan)

    def run(self, decode: list[Row], prefill: list[tuple[Row, int]] | None = None) -> list[RowOutput]:
        return list(self.runner.collect(self.launch(decode, prefill)).rows)

    def generate(self, row: Row, tokens: int, chunk: int = 1000) -> list[RowOutput]:
        self.begin(row)
        outputs: list[RowOutput] = []
        while not outputs:
            outputs = self.run([], [(row, chunk)])
        while len(outputs) < tokens:
            outputs += self.run([row])
        return outputs


def ids(outputs: list[RowOutput]) -> list[int]:
    return [output.token for output in outputs]


def alone(decoder: Decoder, row: Row, tokens: int, chunk: int = 1000) -> list[int]:
    return ids(Driver(make_runner(decoder)).generate(row, tokens, chunk))


def test_paged_decode_equals_the_whole_text_at_once(decoder: Decoder) -> None:
    text = prompt(1, 37)
    found = alone(decoder, Row(0, text), 40)
    cache = decoder.new_cache(20, BLOCK)
    whole = torch.tensor(text + tuple(found))
    hidden = decoder.prefill(whole, 0, torch.arange(1, 7), cache)
    assert decoder.logits(hidden)[36:-1].argmax(-1).tolist() == found
    assert len(set(found)) > 10


@pytest.mark.parametrize("sampling", [GREEDY, WARM])
@pytest.mark.parametrize("chunk", [1, 17, 64])
def test_check_10_chunks_change_no_id(decoder: Decoder, chunk: int, sampling: SamplingParams) -> None:
    text = prompt(2, 130)
    assert alone(decoder, Row(0, text, sampling, 5), 24, chunk) == alone(
        decoder, Row(0, text, sampling, 5), 24
    )


@pytest.mark.parametrize("sampling", [GREEDY, WARM])
def test_check_06_and_07_rows_join_and_leave_without_changing_others(
    decoder: Decoder, sampling: SamplingParams
) -> None:
    lengths = [3, 40, 16, 75, 9]
    texts = [prompt(10 + i, length) for i, length in enumerate(lengths)]
    expected = [alone(decoder, Row(0, text, sampling, seed), 30) for seed, text in enumerate(texts)]
    driver = Driver(make_runner(decoder))
    rows = [Row(place, texts[i], sampling, i) for i, place in enumerate((4, 0, 2, 7, 1))]
    got: dict[int, list[int]] = {i: [] for i in range(5)}
    for step in range(60):
        running = [i for i in range(5) if step > 4 * i and len(got[i]) < 30]
        joining = [i for i in range(5) if step == 4 * i]
        for i in joining:
            driver.begin(rows[i])
        outputs = driver.run([rows[i] for i in running[::-1]], [(rows[i], 1000) for i in joining])
        for i, output in zip(running[::-1] + joining, outputs, strict=True):
            got[i].append(output.token)
    assert list(got.values()) == expected


@pytest.mark.parametrize("sampling", [GREEDY, WARM])
def test_check_09_a_launch_before_the_last_collect_changes_nothing(
    decoder: Decoder, sampling: SamplingParams
) -> None:
    texts = [prompt(20, 21), prompt(21, 34)]
    expected = [alone(decoder, Row(0, text, sampling, i), 20) for i, text in enumerate(texts)]
    driver = Driver(make_runner(decoder))
    rows = [driver.begin(Row(i, text, sampling, i)) for i, text in enumerate(texts)]
    flight = [driver.launch([], [(row, 1000) for row in rows])]
    collected: list[list[RowOutput]] = []
    for _ in range(19):
        flight.append(driver.launch(rows))
        collected.append(list(driver.runner.collect(flight.pop(0)).rows))
    collected.append(list(driver.runner.collect(flight.pop()).rows))
    assert [ids([step[i] for step in collected]) for i in range(2)] == expected


def test_check_07_a_preempted_row_goes_on_with_the_same_ids(decoder: Decoder) -> None:
    text = prompt(30, 25)
    expected = Driver(make_runner(decoder)).generate(Row(0, text, WARM, 99), 30)
    driver = Driver(make_runner(decoder))
    first = driver.generate(Row(3, text, WARM, 99), 12)
    driver.generate(Row(3, prompt(31, 50), GREEDY), 4)  # somebody else takes the row
    again = Row(5, text + tuple(ids(first)), WARM, 99, n_prompt=25)
    assert ids(first) + ids(driver.generate(again, 18, chunk=20)) == ids(expected)


def test_logprobs_reach_the_output_sorted_and_only_where_asked(decoder: Decoder) -> None:
    driver = Driver(make_runner(decoder))
    rows = [driver.begin(Row(i, prompt(40 + i, 9), s)) for i, s in enumerate((WARM, GREEDY))]
    for outputs in (driver.run([], [(row, 99) for row in rows]), driver.run(rows)):
        asked, other = outputs
        assert other.logprob is None and other.top == ()
        assert asked.logprob is not None and asked.logprob <= asked.top[0][1] <= 0
        assert len(asked.top) == 3
        assert [value for _, value in asked.top] == sorted((value for _, value in asked.top), reverse=True)
    cache = decoder.new_cache(20, BLOCK)
    hidden = decoder.prefill(torch.tensor(rows[0].history), 0, torch.arange(1, 3), cache)
    reference = decoder.logits(hidden[-1:]).double().log_softmax(-1)[0]
    first = Driver(make_runner(decoder)).generate(Row(0, rows[0].history, WARM), 1)[0]
    assert first.logprob == pytest.approx(reference[first.token].item(), abs=1e-5)
    assert [t for t, _ in first.top] == reference.topk(3).indices.tolist()


def test_e2_a_poisoned_row_ends_alone_and_leaves_clean_blocks(decoder: Decoder) -> None:
    texts = [prompt(50 + i, 20) for i in range(4)]
    clean = [alone(decoder, Row(0, text), 12) for text in texts]
    driver = Driver(make_runner(decoder))
    rows = [Row(i, text if i != 2 else (*text[:10], POISON), GREEDY) for i, text in enumerate(texts)]
    for row in rows:
        driver.begin(row)
    got = [driver.run([], [(row, 1000) for row in rows])]
    got += [driver.run(rows) for _ in range(11)]
    for i in (0, 1, 3):
        assert ids([step[i] for step in got]) == clean[i]
        assert all(step[i].finite for step in got)
    assert not any(step[2].finite for step in got)
    driver.free += rows[2].blocks  # their NaN must not reach the next owner
    assert ids(driver.generate(Row(2, texts[2]), 12)) == clean[2]


def test_reset_drops_the_rows_and_the_runner_goes_on(decoder: Decoder) -> None:
    driver = Driver(make_runner(decoder))
    expected = ids(driver.generate(Row(0, prompt(60, 12), WARM, 1), 10))
    driver.runner.reset()
    assert ids(driver.generate(Row(0, prompt(60, 12), WARM, 1), 10)) == expected
    assert driver.runner.workspace_bytes > 8 * VOCAB * 5  # penalty counts of 8 rows


def test_step_reports_its_works_and_times(decoder: Decoder) -> None:
    driver = Driver(make_runner(decoder))
    row = driver.begin(Row(0, prompt(70, 40)))
    quiet = driver.runner.collect(driver.launch([], [(row, 16)]))
    assert quiet.rows == () and quiet.prefill_s > 0 and quiet.decode_s == 0
    late = driver.begin(Row(1, prompt(71, 8)))
    assert ids(driver.run([], [(row, 24)]))
    both = driver.runner.collect(driver.launch([row], [(late, 8)]))
    assert [output.seq for output in both.rows] == [0, 1]
    assert both.step == 2 and both.prefill_s > 0 and both.decode_s > 0


def test_the_decoder_learns_each_row_s_prompt_length(decoder: Decoder) -> None:
    """Rotary kinds that depend on it (longrope, dynamic) would otherwise choose by the chunk's end."""
    told: list[object] = []

    class Listening:
        new_cache, logits = decoder.new_cache, decoder.logits

        @staticmethod
        def prefill(*args: object) -> torch.Tensor:
            told.append(args[4])
            return decoder.prefill(*args)  # type: ignore[arg-type]

        @staticmethod
        def decode(*args: object) -> torch.Tensor:
            told.append(args[4].tolist())  # type: ignore[attr-defined]
            return decoder.decode(*args)  # type: ignore[arg-type]

    driver = Driver(make_runner(Listening()))  # type: ignore[arg-type]
    rows = [driver.begin(Row(1, prompt(80, 20))), driver.begin(Row(6, prompt(81, 9), n_prompt=7))]
    driver.run([], [(rows[0], 15)])
    driver.run([], [(rows[0], 5), (rows[1], 9)])
    driver.run(rows[::-1])
    assert told == [20, 20, 7, [7, 20]]


def test_a_failed_allocation_is_a_memory_error(decoder: Decoder) -> None:
    class Greedy:
        new_cache, decode, logits = decoder.new_cache, decoder.decode, decoder.logits

        @staticmethod
        def prefill(*args: object) -> torch.Tensor:
            return torch.empty(2**50)

    driver = Driver(make_runner(Greedy()))  # type: ignore[arg-type]
    row = driver.begin(Row(0, (5, 6)))
    with pytest.raises(MemoryError):
        driver.run([], [(row, 2)])


def test_the_trained_model_tells_its_story() -> None:
    directory = Path(__file__).parents[2].parent / "shared/models/stories260k"
    if not directory.exists():
        pytest.skip("needs the trained model")
    decoder = tiny.load(directory)
    runner = Runner(
        decoder,
        max_batch=1,
        num_blocks=10,
        block_size=64,
        max_context=512,
        vocab=512,
        device=CPU,
        eos_ids=(2,),
    )
    driver = Driver(runner, num_blocks=10)
    found = ids(driver.generate(Row(0, (1,)), 16))
    tokenizers = pytest.importorskip("tokenizers")
    text = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json")).decode(found)
    assert text.strip().startswith("Once upon a time, there was a little girl")
