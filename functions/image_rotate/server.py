"""image_rotate: a JPEG image from S3, turned by 90 degrees.

The inputs are images of different sizes, so the memory that a request touches
changes with its input.
"""

from hashlib import sha256
from io import BytesIO

import s3
from PIL import Image
from serve import serve


def rotate(n):
    image = Image.open(BytesIO(s3.get(f"image_rotate/{n}.jpg")))
    turned = image.transpose(Image.Transpose.ROTATE_90)
    out = BytesIO()
    turned.save(out, "JPEG", quality=90)
    return {
        "from": image.size,
        "to": turned.size,
        "bytes": out.tell(),
        "sha256": sha256(out.getbuffer()).hexdigest(),
    }


if __name__ == "__main__":
    Image.init()  # loads the codecs
    serve(rotate)
