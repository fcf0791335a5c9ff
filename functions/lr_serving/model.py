"""Trains lr_serving's model when its image is built; the same each time."""

from random import Random

import joblib
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

GOOD = "great excellent lovely fresh delicious perfect wonderful tasty happy recommend best sweet".split()
BAD = "awful terrible stale broken bitter disappointing worst waste sad refund bland sour".split()
PLAIN = """the a this that it was is of and with for my our very honey jar tea coffee biscuit
box shop order day week friend morning bought tasted arrived opened shared again before""".split()


def review(random, opinion):
    length = random.randint(8, 40)
    return " ".join(random.choice(opinion if random.random() < 0.15 else PLAIN) for _ in range(length))


if __name__ == "__main__":
    random = Random(1)
    good = [i % 2 == 0 for i in range(4000)]
    texts = [review(random, GOOD if g else BAD) for g in good]
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(random_state=1))
    joblib.dump(model.fit(texts, good), "/app/model.joblib")
