"""Generated programs run here, apart from the tests that judge them. ``host`` is Colever's side of it.

All other modules run inside: they know the standard library and nothing of Colever. This file imports nothing, since
it is imported inside too.
"""
