"""What is made from data and shipped: the atlas now, networks' weights with the methods that need them."""

ATLAS_SUBJECTS = ("01", "02", "04", "06", "07", "09", "10", "11", "13", "14", "16", "19")
HELD_OUT_SUBJECTS = ("05", "12", "17", "20")
