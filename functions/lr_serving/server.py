"""lr_serving: is a review a good one? Logistic regression answers.

The model, words to weights and weights to an answer, was trained when the image
was built (model.py).
"""

import joblib
from serve import serve

REVIEWS = [
    "the honey arrived fresh and tasted wonderful, the best of this week, I recommend it",
    "stale biscuit in a broken box, a terrible waste, and no refund for my friend",
    "my order of tea was excellent and the jar perfect for our morning",
    "this coffee was bitter and bland, the worst that we bought before",
]

model = joblib.load("/app/model.joblib")


def judge(n):
    review = REVIEWS[n - 1]
    good = float(model.predict_proba([review])[0, 1])
    return {"review": review, "good": good > 0.5, "probability": round(good, 6)}


if __name__ == "__main__":
    serve(judge, inputs=len(REVIEWS))
