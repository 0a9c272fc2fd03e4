"""LoRA: a client fine-tunes a vendor's GPT-2-shaped model on text that stays with it, forward and backward on ciphertexts.

    pip install "hesplit-native[examples]"
    python examples/04_lora.py

Two processes. The vendor's weights never change and never come; adapters, activations and gradients stay at the client.
"""

import multiprocessing
from multiprocessing.connection import Connection

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

import hesplit_native as hn

TEXT = b"Sinus rhythm, left axis deviation, no acute ST changes. Follow-up in four weeks. " * 16
STEPS, ROWS, LENGTH = 20, 2, 64


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    ids = {"vocab_size": 256, "bos_token_id": None, "eos_token_id": None}
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=128, n_head=4, n_positions=LENGTH, **ids))


def vendor(pipe: Connection) -> None:
    with hn.serve(gpt2(), layers="transformer.h.*", port=0) as server:
        pipe.send(server.address)
        pipe.recv()  # until the client is done


def fine_tune(model: GPT2LMHeadModel) -> list[float]:
    torch.manual_seed(1)
    adapters = LoraConfig(r=8, target_modules=["c_attn", "c_fc", "c_proj"])
    tuned = get_peft_model(model, adapters).eval()  # no dropout, to compare
    optimizer = torch.optim.Adam((p for p in tuned.parameters() if p.requires_grad), lr=0.03)
    losses = []
    for step in range(STEPS):
        begin = 97 * step % (len(TEXT) - ROWS * LENGTH)
        tokens = torch.tensor(list(TEXT[begin : begin + ROWS * LENGTH])).reshape(ROWS, LENGTH)
        optimizer.zero_grad()
        losses.append(tuned(input_ids=tokens, labels=tokens).loss)
        losses[-1].backward()
        optimizer.step()
    return [loss.item() for loss in losses]


def main() -> None:
    clear = fine_tune(gpt2())
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=vendor, args=(there,))
    process.start()
    with hn.connect(here.recv()) as connection:
        ours = fine_tune(hn.nn.encrypt(gpt2(), server=connection))
    here.send("done")
    process.join()
    for step in range(0, STEPS, 5):
        print(f"step {step:2}: loss in the clear {clear[step]:.4f}, on ciphertexts {ours[step]:.4f}")
    apart = max(abs(a - b) / b for a, b in zip(ours, clear, strict=True))
    sent = (connection.bytes_up + connection.bytes_down) / (STEPS * ROWS * LENGTH)
    print(f"at most {100 * apart:.4f} % apart, {sent:.0f} bytes a token, hints included")


if __name__ == "__main__":
    main()
