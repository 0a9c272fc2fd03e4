"""Models of transformers and adapters of peft on encrypted layers: small ones of random weights, nothing is downloaded."""

from __future__ import annotations

import copy

import pytest
import torch

from hesplit_native.nn import EncryptedLinear, decrypt, encrypt

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2, pad_token_id=0)
    return transformers.GPT2LMHeadModel(config).eval()


def encrypted_names(model):
    return [name for name, module in model.named_modules() if hasattr(module, "begin_encryption")]


def test_generation_is_that_of_the_plain_model(gpt2):
    plain = copy.deepcopy(gpt2)
    encrypt(gpt2, "transformer.h.*")
    assert len(encrypted_names(gpt2)) == 8
    tokens = torch.tensor([[5, 7, 11]])
    torch.testing.assert_close(gpt2(tokens).logits, plain(tokens).logits, atol=1e-4, rtol=0)
    options = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(gpt2.generate(tokens, **options), plain.generate(tokens, **options))
    plain.load_state_dict(gpt2.state_dict())
    gpt2.load_state_dict(plain.state_dict())
    decrypt(gpt2)
    assert [type(m) for m in gpt2.modules()] == [type(m) for m in plain.modules()]


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning"
)  # peft and transformers of each other
@pytest.mark.parametrize(
    "around", [True, False], ids=["adapters around encrypted layers", "layers inside of adapters encrypted"]
)
def test_lora_trains_as_on_the_plain_model(gpt2, around):
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, lora_dropout=0.0
    )
    plain = peft.get_peft_model(copy.deepcopy(gpt2), config)
    if around:
        encrypt(gpt2, ["*.c_attn", "*.c_fc"])
        adapted = peft.get_peft_model(gpt2, config)
    else:
        adapted = encrypt(peft.get_peft_model(gpt2, config), "*.base_layer")
    adapted.load_state_dict(plain.state_dict())
    assert len(encrypted_names(adapted)) == 4
    tokens = torch.randint(1, 50, (4, 10), generator=torch.Generator().manual_seed(1))
    losses = []
    for model in (plain, adapted):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
        history = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        losses.append(history)
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(tokens).logits, plain(tokens).logits, atol=2e-2, rtol=0)


def test_queries_keys_and_values_of_bert_share_an_upload():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    plain, tokens = copy.deepcopy(model), torch.tensor([[3, 4, 5]])
    encrypt(model, torch.nn.Linear, calibrate=tokens)
    layers = [module for module in model.modules() if isinstance(module, EncryptedLinear)]
    assert len(layers) == 6
    before = layers[0]._uploads.requests
    torch.testing.assert_close(model(tokens)[0], plain(tokens)[0], atol=1e-3, rtol=0)
    assert layers[0]._uploads.requests == before + 4
