"""Small pictures, and folders of them."""

import io

import numpy as np
from PIL import Image


def picture(value, kind="PNG", side=4):
    """The bytes of a grey picture with a gradient."""
    out = io.BytesIO()
    pixels = np.full((side, side), value, np.uint8)
    pixels[0] += np.arange(side, dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def digits(write, folder="digits", classes=("0", "1", "7"), each=4):
    """A folder of pictures by class, all different."""
    for number, label in enumerate(classes):
        for index in range(each):
            write(f"{folder}/{label}/{index:04}.png", picture(20 * number + index))
