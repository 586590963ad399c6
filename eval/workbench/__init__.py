"""The page of `cot-builder browse`: search a dataset, look at its studies, judge its chains.

`index` finds studies, `study` prepares one for its page, and `app` serves it to this machine.
Pages work without JavaScript; it adds keys and highlights.
"""
