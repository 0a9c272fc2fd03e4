"""A lab serves its classifier; a hospital classifies embeddings that it does not send.

    python examples/01_classifier_head.py

The hospital's encoder stays where it is. The head, 768 features to 100 classes, is at the lab, which receives ciphertexts.
"""

from collections import OrderedDict

import torch

import hesplit_native as hn

ROWS = 5000


def main() -> None:
    torch.manual_seed(0)
    lab_model = torch.nn.Sequential(OrderedDict(head=torch.nn.Linear(768, 100)))  # trained as usual
    embeddings = torch.nn.functional.normalize(torch.randn(ROWS, 768), dim=1)

    with hn.serve(lab_model, port=0) as server, hn.connect(server.address) as lab, torch.no_grad():
        print("the lab offers", {name: layer.shape for name, layer in lab.layers.items()})
        with torch.device("meta"):  # the hospital knows the shape and never has the weights
            model = torch.nn.Sequential(OrderedDict(head=torch.nn.Linear(768, 100)))
        hn.nn.encrypt(model, server=lab)
        classes = model(embeddings).argmax(1)
        agree = (classes == lab_model(embeddings).argmax(1)).sum().item()
        print(
            f"{agree} of {ROWS} classes as in the clear, {lab.bytes_up / ROWS:.0f} bytes sent a row (float32: {4 * 768})"
        )


if __name__ == "__main__":
    main()
