"""`python -m twofold.core`, which is also what `torchrun -m twofold.core` starts several times."""

from twofold.core.cli import main

if __name__ == "__main__":
    main()
