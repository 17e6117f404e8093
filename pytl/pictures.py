"""How the figures look, those of comparisons and of channels alike."""

INK = "#3c4653"
WIDTH = 5.4  # inches: on a phone, where a picture is as wide as the screen, the letters are still readable
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa4b1",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6eaef",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
}
