"""What `load.py` is made of: sources of pictures, the check of a picture, and the table."""
