"""rnn_serving: names that could be of a language, made up letter by letter.

The weights were made when the image was built (model.py); the network is in
net.py.
"""

import torch
from net import LANGUAGES, LETTERS, Net
from serve import serve

INITIALS = "abeghjlmprst"  # one name begins with each
LONGEST = 16

torch.set_num_threads(1)
net = Net().eval()
net.load_state_dict(torch.load("/app/weights.pt"))


@torch.no_grad()
def invent(language, initial, dice):
    name, state = initial, None
    letters = torch.tensor([[len(LETTERS) - 1, LETTERS.index(initial)]])
    while len(name) < LONGEST:
        scores, state = net(language, letters, state)
        letters = torch.multinomial((1.5 * scores[0, -1:]).softmax(1), 1, generator=dice)
        if LETTERS[letters] == ".":
            break
        name += LETTERS[letters]
    return name.capitalize()


def names(n):
    dice = torch.Generator().manual_seed(n)  # an input has one answer
    language = torch.tensor([n - 1])
    return {"language": LANGUAGES[n - 1], "names": [invent(language, c, dice) for c in INITIALS]}


if __name__ == "__main__":
    serve(names, inputs=len(LANGUAGES))
