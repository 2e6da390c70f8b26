"""The dataset layer every stage reads through: sources -> formats -> role -> checks -> split -> tokens on disk.

`records` holds what a row can be, `sources` and `readers` where rows come from, `formats` (one file each) how a layout
becomes a record, `checks` and `ledger` what becomes of it, `splits` what is held out, `tokenize` the columns of a
trainer, and `prepare` runs them in this order.
"""
