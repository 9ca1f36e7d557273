"""Every method against every other at equal model calls: ``python -m bench``; ``--help`` for the options.

``python -m bench settings`` measures the main methods where artists render, ``python -m bench studies`` what else
planned mode promises, ``python -m bench full-size`` speed and memory at Wan2.1's real dimensions.
"""

import sys

from bench.loading import load_pack

if __name__ == "__main__":
    if sys.argv[1:2] == ["full-size"] and "--lowvram" in sys.argv:
        from demo.comfyui import import_comfy

        # Before ComfyUI is loaded. Its --lowvram streams nothing on a card that could hold the model; this one does.
        import_comfy(novram=True)
    load_pack()
    if sys.argv[1:2] == ["settings"]:
        from ertacache.bench.settings import main as settings

        del sys.argv[1]
        settings()
    elif sys.argv[1:2] == ["studies"]:
        from ertacache.bench.studies import main as studies

        del sys.argv[1]
        studies()
    elif sys.argv[1:2] == ["full-size"]:
        from ertacache.bench.full_size import main as full_size

        del sys.argv[1]
        full_size()
    else:
        from ertacache.bench.command import main

        main()
