"""One function a category: it adds the parts of the thing to an outline.

Each takes the outline and `vary(low, high)`, a source of random numbers for
proportions. Coordinates run from -1 to 1 in both directions, y downwards.
"""

from .accessories import backpack, handbag, sunglasses, umbrella, watch
from .clothing import cap, dress, hat, skirt, t_shirt, trousers
from .footwear import boot, high_heel, sandal, sneaker
from .household import bottle, chair, lamp, mug, sofa, teapot

DRAWERS = {
    "sneaker": sneaker,
    "boot": boot,
    "sandal": sandal,
    "high heel": high_heel,
    "t-shirt": t_shirt,
    "dress": dress,
    "skirt": skirt,
    "trousers": trousers,
    "hat": hat,
    "cap": cap,
    "handbag": handbag,
    "backpack": backpack,
    "mug": mug,
    "teapot": teapot,
    "bottle": bottle,
    "watch": watch,
    "sunglasses": sunglasses,
    "chair": chair,
    "sofa": sofa,
    "lamp": lamp,
    "umbrella": umbrella,
}
