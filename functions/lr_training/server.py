"""lr_training: a classifier of reviews, trained on a file from S3.

Reviews become vectors of weighted words (TF-IDF), on which logistic regression
learns which of them are good. The files are of different sizes.
"""

import csv
from io import StringIO

import s3
from serve import serve
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression


def train(n):
    rows = csv.DictReader(StringIO(s3.get(f"lr_training/{n}.csv").decode()))
    texts, good = zip(*((row["review"], row["good"] == "1") for row in rows))
    words = TfidfVectorizer(min_df=2)
    vectors = words.fit_transform(texts)
    model = LogisticRegression(max_iter=200).fit(vectors, good)
    return {
        "reviews": len(texts),
        "words": len(words.vocabulary_),
        "steps": int(model.n_iter_[0]),
        "accuracy": round(float(model.score(vectors, good)), 4),
    }


if __name__ == "__main__":
    serve(train)
