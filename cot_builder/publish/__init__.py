"""A dataset folder to a version that others can load, and back.

`version` makes a folder with Parquet files by config, the card, Croissant metadata, and last
`manifest.json`; `hub` puts that folder on the Hub under a tag; `rehydrate` makes the dataset folder
again, from a text-free version with the reader's own copy of the release; `changes` tells what two
versions read differently.
"""
