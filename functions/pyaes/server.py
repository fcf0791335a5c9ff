"""pyaes: a text encrypted and decrypted, by AES in pure Python."""

from pyaes import AESModeOfOperationCTR
from serve import serve

KEY = b"\xa1\xf6%\x8c\x87}_\xcd\x89dHE8\xbf\xc9,"
TEXTS = [
    "a hundred bees went out to look for a meadow; ",
    "ninety-nine came back and danced the way to it; ",
    "the last had found a shop that sold honey in jars; ",
    "and never had it seen so little of a meadow at once; ",
]
LENGTH = 1000  # of the message, in bytes


def encrypt(n):
    text = (TEXTS[n - 1] * LENGTH)[:LENGTH]
    # Counter mode: each direction begins at the same counter.
    sealed = AESModeOfOperationCTR(KEY).encrypt(text)
    opened = AESModeOfOperationCTR(KEY).decrypt(sealed).decode()
    return {"bytes": len(sealed), "begins": sealed[:16].hex(), "same": opened == text}


if __name__ == "__main__":
    serve(encrypt, inputs=len(TEXTS))
