"""``ttf app`` from a clone."""

from ttf.commands import start

if __name__ == "__main__":
    start("app")
