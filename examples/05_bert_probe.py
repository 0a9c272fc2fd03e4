"""A linear probe on a BERT-shaped encoder that a lab serves: the encoder sees ciphertexts, probe and labels stay at the client.

pip install "hesplit-native[examples]"
python examples/05_bert_probe.py
"""

import torch
from transformers import BertConfig, BertModel

import hesplit_native as hn

ROWS, LENGTH = 48, 12


def bert() -> BertModel:
    torch.manual_seed(0)
    shape = BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=200
    )
    return BertModel(shape, add_pooling_layer=False).eval()


def features(encoder: BertModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return encoder(tokens).last_hidden_state.mean(1)


def probe(inputs: torch.Tensor, labels: torch.Tensor) -> float:
    torch.manual_seed(1)
    layer = torch.nn.Linear(64, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(inputs), labels).backward()
        optimizer.step()
    return (layer(inputs).argmax(1) == labels).float().mean().item()


def main() -> None:
    torch.manual_seed(2)
    tokens = torch.randint(0, 200, (ROWS, LENGTH))
    labels = (tokens < 100).float().mean(1).gt(0.5).long()  # something to find
    with hn.serve(bert(), layers="encoder.*", port=0, backward=False) as server, hn.connect(server.address) as lab:
        encoder = hn.nn.encrypt(bert(), server=lab)
        ours, clear = features(encoder, tokens), features(bert(), tokens)
        print(f"features apart by at most {(ours - clear).abs().max():.1e}, {lab.requests} requests")
    print(
        f"training accuracy of the probe: {probe(ours, labels):.3f} on ciphertexts, {probe(clear, labels):.3f} in the clear"
    )


if __name__ == "__main__":
    main()
