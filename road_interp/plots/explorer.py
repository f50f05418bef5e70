"""Widgets for a notebook that draw one plane of an adapter by layer, module, plane and strength."""

from __future__ import annotations

import io

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np

from road_interp import plots
from road_interp.adapters.road_adapter import RoadAdapter, Source
from road_interp.measure.angles import kinds_by_stack
from road_interp.plots.style import COLORS
from road_interp.sites.site import Site


class Explorer(ipywidgets.VBox):
    """Widgets for an adapter: `layer`, `module`, `plane`, `strength`, and the `picture` that they redraw.

    The adapter is given as `RoadAdapter.of` takes it.

    The picture shows the unit circle of one plane before and after the rotation, and the angles of all planes of its site. The
    strength is the exponent of the adapter, which has to be road_1 without scales of 0: 0 is the identity, 1 the trained adapter.
    """

    def __init__(self, adapter: Source) -> None:
        self.adapter = adapter = RoadAdapter.of(adapter)
        self._kinds = kinds_by_stack(adapter.sites)
        layers = list(dict.fromkeys(site.layer for site in adapter.sites))
        self.layer = ipywidgets.Dropdown(
            options=[("-" if layer is None else str(layer), layer) for layer in layers], description="layer"
        )
        self.module = ipywidgets.Dropdown(description="module")
        self.plane = ipywidgets.IntSlider(description="plane", min=0, continuous_update=False)
        has_powers = adapter.variant == "road_1" and not any((adapter.magnitudes(site) == 0).any() for site in adapter.sites)
        self.strength = ipywidgets.FloatSlider(
            1.0, min=0, max=2, step=0.05, description="strength", continuous_update=False, disabled=not has_powers
        )
        self.picture = ipywidgets.Image(format="png")
        self.module.observe(lambda change: self._choose_site(), "value")
        self.layer.observe(lambda change: self._choose_layer(), "value")
        for slider in (self.plane, self.strength):
            slider.observe(lambda change: self._draw(), "value")
        self._choose_layer()
        super().__init__([ipywidgets.HBox([self.layer, self.module]), ipywidgets.HBox([self.plane, self.strength]), self.picture])

    @property
    def site(self) -> Site:
        """The chosen site."""
        return self.adapter.site(self.module.value)

    def _choose_layer(self) -> None:
        """List the modules of the layer; the chosen module kind stays chosen where the layer has it."""
        sites = [site for site in self.adapter.sites if site.layer == self.layer.value]
        kind = self._kinds.get(self.module.value)
        chosen = next((site for site in sites if self._kinds[site.name] == kind), sites[0])
        self.module.options = [(self._kinds[site.name] or site.name, site.name) for site in sites]
        self.module.value = chosen.name

    def _choose_site(self) -> None:
        self.plane.max = self.site.width // 2 - 1
        self._draw()

    def _draw(self) -> None:
        here = self.adapter.restrict({self.site.name: range(self.site.width // 2)})
        adapter = self.adapter if self.strength.value == 1 else here**self.strength.value
        degrees = np.degrees(adapter.angles(self.site).detach().numpy())
        with plt.style.context(plots.STYLE):
            figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained", width_ratios=(1, 2))
            plots.plane(adapter, left, site=self.site, index=self.plane.value)
            right.plot(degrees, ".", color="0.6", markersize=2)
            right.plot(self.plane.value, degrees[self.plane.value], "o", color=COLORS[0])
            right.set(xlabel="plane", ylabel="angle (degrees)", title=self.site.name)
            content = io.BytesIO()
            figure.savefig(content, format="png", dpi=110)
            plt.close(figure)
        self.picture.value = content.getvalue()
