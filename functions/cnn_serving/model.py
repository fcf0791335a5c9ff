"""Trains cnn_serving's network when its image is built, and draws its inputs.

The seed is fixed, and one thread adds up in one order: the same packages on the
same kind of CPU make the same weights.
"""

import torch
from net import KINDS, network, picture
from torch.nn.functional import cross_entropy

STEPS = 120
BATCH = 20

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(1)
    net = network()
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    for step in range(STEPS):
        answers = torch.arange(BATCH) % len(KINDS)
        pictures = torch.stack([picture(KINDS[a]) for a in answers])
        loss = cross_entropy(net(pictures), answers)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"loss {loss.item():.4f} after {STEPS} steps")
    torch.save(net.state_dict(), "/app/weights.pt")
    torch.save(torch.stack([picture(kind) for kind in KINDS]), "/app/pictures.pt")
