"""helloworld: the least that a function can do."""

from serve import serve

NAMES = ["world", "bee", "skep", "meadow"]


def hello(n):
    return {"message": f"Hello, {NAMES[n - 1]}!"}


if __name__ == "__main__":
    serve(hello, inputs=len(NAMES))
