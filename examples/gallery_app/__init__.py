"""The parts of the search gallery; `gallery.py` beside this folder starts it."""
