"""A GPT-2-shaped model writes on; its blocks' weights are at a vendor, in another process, and see ciphertexts.

    pip install "hesplit-native[examples]"
    python examples/03_gpt2_generate.py

The client has the embeddings, norms and attention; the vendor the 8 linear layers, which queries, keys, values and both halves of
each block's perceptron go through. Tokens never leave.
"""

import multiprocessing
from multiprocessing.connection import Connection

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import hesplit_native as hn


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    shape = GPT2Config(
        n_layer=2, n_embd=128, n_head=4, vocab_size=512, n_positions=64, eos_token_id=None, bos_token_id=None
    )
    return GPT2LMHeadModel(shape).eval()


def vendor(pipe: Connection) -> None:
    with hn.serve(gpt2(), layers="transformer.h.*", port=0) as server:
        pipe.send(server.address)
        pipe.recv()  # until the client is done


def main() -> None:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=vendor, args=(there,))
    process.start()
    prompt = torch.tensor([[11, 42, 7, 300]])
    with hn.connect(here.recv()) as connection:
        model = hn.nn.encrypt(gpt2(), server=connection)
        ours = model.generate(prompt, max_new_tokens=12, do_sample=False)
    here.send("done")
    process.join()
    clear = gpt2().generate(prompt, max_new_tokens=12, do_sample=False)
    print("in the clear  ", clear[0].tolist())
    print("on ciphertexts", ours[0].tolist())
    print(f"{connection.requests} requests, {connection.bytes_up + connection.bytes_down} bytes, hints included")


if __name__ == "__main__":
    main()
