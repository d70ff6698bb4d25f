"""``python -m napari_kdunet`` is the command line."""

from napari_kdunet.cli import main

if __name__ == "__main__":
    main()
