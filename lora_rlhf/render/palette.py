"""The colours of pages and pictures: each has a name, and one shade for light pages and one for dark ones."""

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    **{"paper": "#fdfdfb", "card": "#ffffff", "ink": "#1c2024", "soft": "#5a626b", "faint": "#8b939b"},
    **{"line": "#dfe3e6", "one": "#1f5f9f", "two": "#b85a1a", "three": "#1d7a58", "four": "#94397b"},
    **{"good": "#1d7a4a", "bad": "#b3261e", "open": "#6b6f76"},
    **{"good-bg": "#e5f4ea", "bad-bg": "#fbe9e7", "open-bg": "#eef0f2"},
}
DARK: Mapping[str, str] = {
    **{"paper": "#14171a", "card": "#1c2024", "ink": "#e6e9ec", "soft": "#a7b0b8", "faint": "#858e97"},
    **{"line": "#333a41", "one": "#6fb1f0", "two": "#f0a060", "three": "#5fc89c", "four": "#dd8cc6"},
    **{"good": "#73d29b", "bad": "#ff9488", "open": "#b0b7be"},
    **{"good-bg": "#16321f", "bad-bg": "#3d1b18", "open-bg": "#282d32"},
}
# What pictures are drawn with: text, what is beside the point, and series of data one after the other.
DRAWN = ("ink", "faint", "one", "two", "three", "four")
INK, FAINT, *SERIES = (LIGHT[name] for name in DRAWN)
