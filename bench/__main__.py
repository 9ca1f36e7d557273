"""Every method against every other at equal evaluations: ``python -m bench``; ``--help`` for the options."""

from bench.loading import load_pack

if __name__ == "__main__":
    load_pack()
    from ertacache.bench.command import main

    main()
