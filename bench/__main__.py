"""Every method against every other at equal evaluations: ``python -m bench``; ``--help`` for the options.

``python -m bench studies`` measures what else planned mode promises.
"""

import sys

from bench.loading import load_pack

if __name__ == "__main__":
    load_pack()
    if sys.argv[1:2] == ["studies"]:
        from ertacache.bench.studies import main as studies

        del sys.argv[1]
        studies()
    else:
        from ertacache.bench.command import main

        main()
