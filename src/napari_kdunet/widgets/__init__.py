"""The dock widgets: events in; status, plots and layers out. No torch here, only in `napari_kdunet.core`."""
