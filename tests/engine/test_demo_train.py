"""Training the demo model, very briefly: files are written, load elsewhere, and agree."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

from lmtop.engine.demo import train
from lmtop.engine.demo.corpus import conversation
from lmtop.engine.demo.net import Net, Shape, load_net, save_net
from lmtop.engine.demo.tokenizer import render


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("demo")
    train.main(
        ["--out", str(out), "--steps", "2", "--conversations", "100", "--batch-tokens", "256", "--log-every", "1",
         "--workers", "1", "--eval-cases", "2", "--eval-tokens", "2"]
    )  # fmt: skip
    return out


def test_files_are_written(trained):
    names = {path.name for path in trained.iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "training.json", "eval.txt", "samples.txt",
    }  # fmt: skip
    assert (trained / "model.safetensors").stat().st_size <= 16 * 2**20
    curve = json.loads((trained / "training.json").read_text())["curve"]
    assert [point["step"] for point in curve] == [1, 2]


def test_transformers_computes_the_same_logits(trained):
    net = load_net(trained).eval()
    other = LlamaForCausalLM.from_pretrained(trained, dtype=torch.float32).eval()
    ids = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(net.logits(net(ids)), other(ids).logits, atol=2e-5)


def test_chat_template_renders_what_training_saw(trained):
    tokenizer = AutoTokenizer.from_pretrained(trained)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "你好 hi  1234 \n{x}"},
    ]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    own = Tokenizer.from_file(str(trained / "tokenizer.json"))
    assert ids == own.encode(render(messages, generate=True)).ids
    assert tokenizer.decode(ids) == render(messages, generate=True)
    assert tokenizer.eos_token_id == 2


def test_data_does_not_depend_on_the_number_of_workers(trained, monkeypatch):
    monkeypatch.setattr(train, "_CHUNK", 7)
    tokenizer = Tokenizer.from_file(str(trained / "tokenizer.json"))
    ids, wanted, lengths = train.encode(tokenizer, 1, 0, 20)
    parts = [train.encode(tokenizer, 1, at, 5) for at in range(0, 20, 5)]
    assert ids == [i for part in parts for i in part[0]]
    assert wanted == [i for part in parts for i in part[1]]
    assert lengths == [i for part in parts for i in part[2]]


def test_exactly_the_answers_are_predicted(trained):
    tokenizer = Tokenizer.from_file(str(trained / "tokenizer.json"))
    ids, wanted, lengths = train.encode(tokenizer, 1, 0, 6)
    data = train.Data(np.array(ids, np.uint16), np.array(wanted), np.concatenate([[0], np.cumsum(lengths)]))
    for row in range(6):
        inputs, at, target = train.collate(data, np.array([row]))
        expected = [m["content"] for m in conversation(1, row) if m["role"] == "assistant"]
        ends = tokenizer.decode(target.tolist(), skip_special_tokens=False).split("<|im_end|>")[:-1]
        assert ends == expected
        assert torch.equal(inputs.flatten()[at + 1], target)


def test_batches_use_every_conversation_once_and_keep_the_limit():
    lengths = np.random.default_rng(0).integers(10, 300, 500)
    data = train.Data(np.zeros(lengths.sum(), np.uint16), np.zeros(lengths.sum(), bool), np.concatenate([[0], np.cumsum(lengths)]))  # fmt: skip
    stream, seen = train.batches(data, 2000, 1), []
    while len(seen) < 500:
        rows = next(stream)
        seen += rows.tolist()
        assert len(rows) * lengths[rows].max() <= 2000
    assert sorted(seen) == list(range(500))


def test_loss_falls_on_a_tiny_network(trained):
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(str(trained / "tokenizer.json"))
    ids, wanted, lengths = train.encode(tokenizer, 1, 0, 200)
    data = train.Data(np.array(ids, np.uint16), np.array(wanted), np.concatenate([[0], np.cumsum(lengths)]))
    net = Net(
        Shape(
            vocab=tokenizer.get_vocab_size(), hidden=32, inner=64, layers=2, heads=2, kv_heads=1, head_dim=16
        )
    )
    args = train.parse(["--out", "x", "--steps", "30", "--batch-tokens", "1024", "--log-every", "10", "--warmup", "5", "--lr", "0.01"])  # fmt: skip
    curve = train.train(net, data, args)
    assert curve[-1]["loss"] < curve[0]["loss"] - 0.5


def test_weights_beyond_float16_are_refused(tmp_path):
    net = Net(Shape(vocab=16, hidden=16, inner=16, layers=1, heads=1, kv_heads=1, head_dim=16))
    net.model.norm.weight.data[0] = 1e6
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        save_net(net, tmp_path)
