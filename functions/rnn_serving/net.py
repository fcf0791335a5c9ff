"""rnn_serving's network: it reads a language and a name's letters so far, and
says which letter is likely to come next."""

import torch
from torch import nn

LETTERS = "abcdefghijklmnopqrstuvwxyz'- ."  # the last one ends a name

NAMES = {
    "english": """alice arthur barbara charles daniel dorothy edward eleanor elizabeth emily frank frederick
        george grace harold harriet helen henry james jane john joseph margaret martha mary michael nancy
        oliver patricia peter philip rachel richard robert rose samuel sarah stephen susan thomas victoria
        walter william winifred""",
    "german": """albrecht annegret bernd brigitte christoph dieter dietrich elfriede ernst friedrich gerhard
        gertrud gisela gottfried gunther hannelore hans heinrich helga helmut hildegard holger horst ingrid
        johannes jurgen karl katharina klaus konrad liesel lothar ludwig manfred matthias monika otto reinhard
        rudolf sabine siegfried sigrid ulrich ursula uwe waltraud werner wilhelm wolfgang""",
    "italian": """alessandro andrea angela antonella antonio beatrice bianca bruno carla carlo chiara cristina
        daniela davide domenico elena enrico fabrizio federica filippo francesca francesco gabriella giacomo
        gianluca giorgio giovanna giovanni giuliana giuseppe guido isabella lorenzo luca lucia luigi marcello
        marco mariella matteo michele nicoletta paolo pietro riccardo roberto salvatore silvia stefano
        valentina vincenzo""",
    "finnish": """aino aleksi anneli antti eeva eino elina esa hannele hannu heikki helmi hilkka ilmari inkeri
        irmeli jaakko jari jarmo johanna juha jukka kaarina kalevi kari kirsi kyllikki lauri leena marjatta
        markku matti mikko minna niko olavi onni orvokki paavo paivi pekka pirjo raimo reijo riitta satu seppo
        sirkka tapani tapio teemu terhi tuomas tuula vaino veikko ville""",
}
LANGUAGES = sorted(NAMES)


class Net(nn.Module):
    def __init__(self, width=96):
        super().__init__()
        self.language = nn.Embedding(len(LANGUAGES), 16)
        self.letter = nn.Embedding(len(LETTERS), 16)
        self.memory = nn.GRU(32, width, batch_first=True)
        self.next = nn.Linear(width, len(LETTERS))

    def forward(self, language, letters, state=None):
        """language: (batch), letters: (batch, length) -> scores, state."""
        where = self.language(language)[:, None].expand(-1, letters.shape[1], -1)
        out, state = self.memory(torch.cat([where, self.letter(letters)], 2), state)
        return self.next(out), state
