"""`python -m twofold.core`; `torchrun -m twofold.core` starts it several times."""

from twofold.core.cli import main

if __name__ == "__main__":
    main()
