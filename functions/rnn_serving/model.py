"""Trains rnn_serving's network when its image is built.

The seed is fixed, and one thread adds up in one order: the same packages on the
same kind of CPU make the same weights.
"""

import torch
from net import LANGUAGES, LETTERS, NAMES, Net
from torch.nn.functional import cross_entropy

STEPS = 60

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(1)
    names = [(LANGUAGES.index(k), name) for k in LANGUAGES for name in NAMES[k].split()]
    longest = max(len(name) for _, name in names) + 1
    end = len(LETTERS) - 1
    language = torch.tensor([k for k, _ in names])
    letters = torch.full((len(names), longest), end)
    for row, (_, name) in enumerate(names):
        letters[row, : len(name)] = torch.tensor([LETTERS.index(c) for c in name])
    before = torch.cat([torch.full((len(names), 1), end), letters[:, :-1]], 1)  # a name begins after an end

    net = Net()
    optimiser = torch.optim.Adam(net.parameters(), lr=8e-3)
    for step in range(STEPS):
        scores, _ = net(language, before)
        loss = cross_entropy(scores.flatten(0, 1), letters.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"loss {loss.item():.4f} after {STEPS} steps")
    torch.save(net.state_dict(), "/app/weights.pt")
