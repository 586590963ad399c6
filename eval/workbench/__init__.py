"""The page of `cot-builder browse`: search a dataset, look at its studies, judge its chains.

`index` finds studies, `study` prepares one for its page, `predictions` reads what a model said,
and `app` serves it to this machine. Pages work without JavaScript; it adds keys and highlights.
"""
