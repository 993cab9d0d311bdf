"""Pictures as a reader of SVG finds them."""

from xml.etree import ElementTree

from benchmarks.plot import Panel, Phase, timeline

SVG = "{http://www.w3.org/2000/svg}"


def test_lines_lie_over_the_same_seconds() -> None:
    panels = [
        Panel(label="replicas", lines={"wanted": [(0, 1), (50, 3), (100, 3)]}, is_stepped=True),
        Panel(label="a < b", lines={"a": [(0, 0.0), (100, 2.0)]}, mark=("most", 4.0), digits=1),
    ]
    phases = [Phase(label="load", begin_s=50, end_s=100)]
    drawn = ElementTree.fromstring(timeline(title="T", panels=panels, phases=phases))
    stepped, straight = (path.get("d") for path in drawn.iter(f"{SVG}path"))
    # Of 670 wide and 120 high: three replicas are the height of their panel, 2 of 4 half of it.
    assert stepped == "M60.0 194.0H395.0V114.0H730.0V114.0"
    assert straight == "M60.0 426.0L730.0 366.0"
    (shade,) = (rect for rect in drawn.iter(f"{SVG}rect") if rect.get("fill") == "#e4ebf2")
    assert (shade.get("x"), shade.get("width")) == ("395.0", "335.0")
    words = [text.text for text in drawn.iter(f"{SVG}text")]
    assert {"a < b", "most", "wanted", "load", "0 s", "100 s", "2.0"} <= set(words)
