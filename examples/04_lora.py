"""LoRA: a client fine-tunes a vendor's GPT-2-shaped model on text that stays with it, forward and backward on ciphertexts.

    pip install "hesplit-native[examples]"
    python examples/04_lora.py

Two processes. The vendor's weights never change and never come; adapters, activations and gradients stay at the client.
"""

import multiprocessing as mp

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

import hesplit_native as hn

TEXT = torch.tensor(list(b"Sinus rhythm, left axis deviation, no acute ST changes. Follow-up in four weeks. " * 16))
ROWS, LENGTH = 2, 64


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=128, n_head=4, n_positions=LENGTH, vocab_size=256))


def vendor(pipe: mp.connection.Connection) -> None:
    with hn.serve(gpt2(), layers="transformer.h.*", port=0) as server:
        pipe.send(server.address)
        pipe.recv()  # until the client is done


def fine_tune(model: GPT2LMHeadModel) -> list[float]:
    torch.manual_seed(1)
    adapters = LoraConfig(r=8, target_modules=["c_attn", "c_fc", "c_proj"])
    tuned = get_peft_model(model, adapters).eval()  # no dropout, to compare
    optimizer = torch.optim.Adam(tuned.parameters(), lr=0.01)
    losses = []
    for begin in range(0, 1000, 50):
        tokens = TEXT[begin : begin + ROWS * LENGTH].reshape(ROWS, LENGTH)
        optimizer.zero_grad()
        losses.append(tuned(input_ids=tokens, labels=tokens).loss)
        losses[-1].backward()
        optimizer.step()
    return [loss.item() for loss in losses]


def main() -> None:
    here, there = mp.Pipe()
    process = mp.get_context("spawn").Process(target=vendor, args=(there,), daemon=True)
    process.start()
    with hn.connect(here.recv()) as connection:
        ours, clear = fine_tune(hn.nn.encrypt(gpt2(), server=connection)), fine_tune(gpt2())
    here.send("done")
    process.join()
    print(*(f"loss in the clear {a:.4f}, on ciphertexts {b:.4f}" for a, b in zip(clear, ours, strict=True)), sep="\n")


if __name__ == "__main__":
    main()
