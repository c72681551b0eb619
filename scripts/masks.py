"""``ttf masks`` from a clone."""

from ttf.commands import start

if __name__ == "__main__":
    start("masks")
