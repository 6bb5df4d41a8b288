"""What the canvases of a IIIF Presentation manifest (versions 2 and 3) show: images or parts."""

import re
import urllib.parse
from collections.abc import Iterator
from typing import NamedTuple

# region/size/rotation/quality.format at the end of an address of the IIIF Image API.
_API = re.compile(
    r"^(?P<base>.+)/(?P<region>full|square|(?:pct:)?[\d.]+(?:,[\d.]+){3})/(?P<size>[^/]+)/"
    r"(?P<rotation>!?[\d.]+)/(?:default|native|color|gray|grey|bitonal)(?:\.\w+)?$"
)
# Ends of the types of resources that are images.
_IMAGES = ("Image", "ImageService", "SpecificResource")


class Painting(NamedTuple):
    """An image that a canvas shows, or a part of one.

    canvas, label: id and label of the canvas.
    address: of the image that region and rotation refer to; "" if nothing can be shown.
    base: its address without the parameters of the Image API; names the image.
    region: `full`, `square`, `x,y,w,h` or `pct:x,y,w,h`, of the image before it is turned.
    rotation: degrees clockwise, after `!` of the mirrored image.
    size: width and height that the region refers to; None if the manifest does not say.
    in_address: whether region and rotation are those in the address, so that a server applies them.
    place: `x,y,w,h` on the canvas.
    whole: whether the place is the whole canvas.
    reason: why nothing can be shown.
    """

    canvas: str
    label: str
    address: str = ""
    base: str = ""
    region: str = "full"
    rotation: str = "0"
    size: tuple[float, float] | None = None
    in_address: bool = False
    place: str = ""
    whole: bool = True
    reason: str = ""


def paintings(content: dict) -> Iterator[Painting]:
    """The images of each canvas in order; of a canvas without an image one without address.

    Raises:
      KeyError, TypeError, IndexError, AttributeError: the manifest does not follow the format.
    """
    if "sequences" in content:
        canvases = [
            canvas for sequence in content["sequences"][:1] for canvas in sequence["canvases"]
        ]
    else:
        canvases = content["items"]
    for canvas in canvases:
        found = [
            _painting(canvas, annotation, resource)
            for annotation in _annotations(canvas)
            for resource in _bodies(annotation)
        ]
        yield from found or [_nothing(canvas, "no image")]


def label_text(label: object) -> str:
    """The first text of a label: a string, or a language map of lists (version 3)."""
    while isinstance(label, dict | list):
        if isinstance(label, dict) and "@value" in label:
            label = label["@value"]
            continue
        values = list(label.values()) if isinstance(label, dict) else label
        label = values[0] if values else ""
    return str(label or "").strip()


def _id(thing: str | dict) -> str:
    if isinstance(thing, str):
        return thing
    return str(thing.get("@id") or thing.get("id") or "")


def _list(thing: object) -> list:
    return thing if isinstance(thing, list) else [] if thing is None else [thing]


def _nothing(canvas: dict, reason: str) -> Painting:
    return Painting(_canvas_id(canvas), label_text(canvas.get("label")), reason=reason)


def _canvas_id(canvas: dict) -> str:
    return str(canvas["@id"] if "@id" in canvas else canvas["id"])


def _annotations(canvas: dict) -> Iterator[dict]:
    yield from canvas.get("images", [])
    for page in canvas.get("items", []):
        for annotation in page.get("items", []):
            motivation = _list(annotation.get("motivation", "painting"))
            if any(str(name).endswith("painting") for name in motivation):
                yield annotation


def _bodies(annotation: dict) -> Iterator[str | dict]:
    """The resources of an annotation; of a choice the first."""
    resources = annotation["resource"] if "resource" in annotation else annotation["body"]
    for resource in _list(resources):
        yield _chosen(resource)


def _chosen(resource: str | dict) -> str | dict:
    if isinstance(resource, str):
        return resource
    if "default" in resource:  # version 2
        return _chosen(resource["default"])
    if resource.get("type") == "Choice":
        return _chosen(resource["items"][0])
    return resource


def _painting(canvas: dict, annotation: dict, resource: str | dict) -> Painting:
    # The whole image counts: what a part names itself may be cut and scaled already.
    whole = _chosen(_source(resource))
    kind = "" if isinstance(whole, str) else _kind(whole)
    if kind and not any(kind.endswith(known) for known in _IMAGES):
        return _nothing(canvas, f"no image, but of the type {kind}")
    if not _id(whole):
        raise KeyError("id")
    address, _, fragment = _id(whole).partition("#")
    parts = _API.match(urllib.parse.urlsplit(address)._replace(query="").geturl())
    given = (parts["region"], parts["rotation"]) if parts else ("full", "0")
    scaled = parts is not None and parts["size"] not in ("full", "max")
    region, rotation, by_service = _selected(resource)
    if fragment_region := _fragment_region(fragment):
        region, by_service = fragment_region, False
    rotation = rotation or _css_rotation(annotation, resource)
    in_address = given != ("full", "0")
    if in_address and (region or rotation):
        return _nothing(canvas, "a part of an image that is itself a part of an image")
    size = _size(whole)
    if by_service or given[0] != "full":  # of the image behind the service, not of what is sent
        size = _service_size(whole) or (None if scaled or given[0] != "full" else size)
    place, is_whole = _place(canvas, annotation)
    return Painting(
        _canvas_id(canvas), label_text(canvas.get("label")), address,
        parts["base"] if parts else address, region or given[0], rotation or given[1],
        size, in_address, place, is_whole,
    )  # fmt: skip


def _source(resource: str | dict) -> str | dict:
    """The image that a specific resource is a part of; any other resource itself."""
    if isinstance(resource, dict):
        for name in ("full", "source"):
            if name in resource:
                return _list(resource[name])[0]
    return resource


def _kind(resource: dict) -> str:
    kinds = _list(resource.get("@type") or resource.get("type") or "")
    kind = str(kinds[0]).rpartition(":")[2] if kinds else ""
    return "ImageService" if kind.startswith("ImageService") else kind


def _selected(resource: str | dict) -> tuple[str, str, bool]:
    """Region and rotation of the selectors of a specific resource, empty if none says.

    Third: whether the region is one of the Image API, which refers to the image of its service.
    """
    region, rotation, by_service = "", "", False
    for selector in _list(resource.get("selector") if isinstance(resource, dict) else None):
        if isinstance(selector, str):
            region = _fragment_region(selector.lstrip("#")) or region
            continue
        selector = selector.get("default", selector)  # of a choice, in version 2
        if selector.get("region"):
            region, by_service = str(selector["region"]), True
        region = _fragment_region(str(selector.get("value") or "").lstrip("#")) or region
        rotation = str(selector.get("rotation") or "") or rotation
    return ("" if region == "full" else region), ("" if rotation == "0" else rotation), by_service


def _fragment_region(fragment: str) -> str:
    """The region of a media fragment: `xywh=1,2,3,4`, `xywh=pixel:...` or `xywh=percent:...`."""
    match = re.search(r"(?:^|&)xywh=(pixel:|percent:)?([\d.]+(?:,[\d.]+){3})", fragment)
    if match is None:
        return ""
    return ("pct:" if match[1] == "percent:" else "") + match[2]


def _css_rotation(annotation: dict, resource: str | dict) -> str:
    """Degrees by which the style of the resource turns it; empty if no style does."""
    sheet = annotation.get("stylesheet")
    if not isinstance(sheet, dict) or not isinstance(resource, dict):
        return ""
    css = str(sheet.get("chars") or sheet.get("value") or "")
    for name in _list(resource.get("style") or resource.get("styleClass")):
        rule = re.search(rf"\.{re.escape(str(name))}\s*\{{([^}}]*)\}}", css)
        turn = rule and re.search(r"rotate\(\s*(-?[\d.]+)(deg|turn)?\s*\)", rule[1])
        if turn:
            return f"{float(turn[1]) * (360 if turn[2] == 'turn' else 1) % 360:g}"
    return ""


def _size(resource: str | dict) -> tuple[float, float] | None:
    """Width and height of a resource; without them, those of its image service."""
    if isinstance(resource, str):
        return None
    try:
        return float(resource["width"]), float(resource["height"])
    except (KeyError, TypeError, ValueError):
        return _service_size(resource)


def _service_size(resource: str | dict) -> tuple[float, float] | None:
    services = _list(resource.get("service")) if isinstance(resource, dict) else []
    for service in services:
        if isinstance(service, dict) and {"width", "height"} <= service.keys():
            return float(service["width"]), float(service["height"])
    return None


def _place(canvas: dict, annotation: dict) -> tuple[str, bool]:
    """Where an annotation lies on its canvas, `x,y,w,h`, and whether this is all of it."""
    size = f"0,0,{canvas.get('width', '')},{canvas.get('height', '')}"
    everything = "" if size.endswith(",") or ",," in size else size
    for target in _list(annotation.get("on") or annotation.get("target")):
        found = [_id(target)]
        selected = ""
        if isinstance(target, dict):
            found.append(_id(target.get("full") or target.get("source") or ""))
            selected = _selected(target)[0]
        regions = [_fragment_region(address.partition("#")[2]) for address in found]
        region = next((one for one in (*regions, selected) if one), everything)
        if region != everything:
            return region.replace("pct:", "percent:"), False
    return everything, True
