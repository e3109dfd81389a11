"""`python -m hfgen`, `accelerate launch -m hfgen`, `torchrun -m hfgen`: the command `hfgen`."""

from hfgen.commands.main import main

if __name__ == "__main__":
    main()
