"""At a fixed number of connections, does a wider and sparser network generalise better?"""

__version__ = "0.1.0"
