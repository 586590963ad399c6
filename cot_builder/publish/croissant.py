"""Croissant metadata of a version (https://docs.mlcommons.org/croissant): files and their fields.

The Hub writes its own for data sets that its viewer can read; private and local ones have this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from datasets import ClassLabel, Features, Image, List

from cot_builder.records import Row

_TERMS: Final = (
    "arrayShape citeAs column containedIn equivalentProperty extract field fileObject fileProperty"
    " fileSet format includes isArray isLiveDataset jsonPath key md5 parentField path recordSet"
    " references regex repeated replace samplingRate separator source subField transform"
).split()
_CONTEXT: Final[Row] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    **{term: f"cr:{term}" for term in _TERMS},
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
}
_TYPES: Final = {
    "string": "sc:Text", "float64": "sc:Float", "int8": "sc:Integer", "int32": "sc:Integer",
}  # fmt: skip


def croissant(
    place: str,
    manifest: Mapping[str, Any],
    features: Mapping[str, Features],
    *,
    title: str,
    summary: str,
    licence: str,
    citation: str,
) -> Row:
    """Return the Croissant description of a version, with a record set for each config."""
    # A folder has no address until somebody gives it one.
    url = f"https://huggingface.co/datasets/{place}" if "/" in place else "."
    repository = {
        "@type": "cr:FileObject",
        "@id": "repo",
        "name": "repo",
        "description": "The repository with all files of this version.",
        "contentUrl": f"{url}/tree/v{manifest['version']}" if "/" in place else url,
        "encodingFormat": "git+https",
        # A repository has no bytes to hash; the Hub's own descriptions say it so.
        "sha256": "https://github.com/mlcommons/croissant/issues/80",
    }
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": place.replace("/", "-"),
        "alternateName": title,
        "description": summary,
        "license": licence,
        "url": url,
        "version": manifest["version"],
        "citeAs": citation,
        "distribution": [repository, *map(_files, features)],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": config,
                "name": config,
                "field": list(_fields(config, dict(columns), config)),
            }
            for config, columns in features.items()
        ],
    }


def _files(config: str) -> Row:
    return {
        "@type": "cr:FileSet",
        "@id": f"parquet-{config}",
        "name": f"parquet-{config}",
        "containedIn": {"@id": "repo"},
        "encodingFormat": "application/x-parquet",
        "includes": f"{config}/*.parquet",
    }


def _fields(config: str, columns: Mapping[str, Any], path: str) -> Iterator[Row]:
    for name, feature in columns.items():
        own = f"{path}/{name}"
        column, *inner = own.split("/")[1:]
        inner += ["bytes"] if isinstance(feature, Image) else []
        row: Row = {
            "@type": "cr:Field",
            # mlcroissant takes no blanks in an id.
            "@id": own.replace(" ", "_"),
            "name": own,
            "source": {
                "fileSet": {"@id": f"parquet-{config}"},
                "extract": {"column": column},
                **({"transform": {"jsonPath": ".".join(inner)}} if inner else {}),
            },
        }
        while isinstance(feature, List):
            row["repeated"] = True
            feature = feature.feature
        if isinstance(feature, dict):
            row["subField"] = list(_fields(config, feature, own))
        else:
            row["dataType"] = _data_type(feature)
        yield row


def _data_type(feature: Any) -> str:
    if isinstance(feature, Image):
        return "sc:ImageObject"
    return "sc:Integer" if isinstance(feature, ClassLabel) else _TYPES[feature.dtype]
