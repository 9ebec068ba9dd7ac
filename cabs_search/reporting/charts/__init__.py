"""Results as Vega-Lite charts."""
