"""cnn_serving: what is in the picture? A convolutional network answers.

Its weights, and the pictures to ask about, were made when the image was built
(model.py); the network itself is in net.py.
"""

import torch
from net import KINDS, network
from serve import serve

torch.set_num_threads(1)
net = network().eval()
net.load_state_dict(torch.load("/app/weights.pt"))
pictures = torch.load("/app/pictures.pt")


@torch.no_grad()
def classify(n):
    scores = net(pictures[n - 1 : n]).softmax(1)[0]
    best = scores.argsort(descending=True)[:3]
    return {"kind": KINDS[best[0]], "scores": {KINDS[i]: round(scores[i].item(), 4) for i in best}}


if __name__ == "__main__":
    serve(classify, inputs=len(KINDS))
