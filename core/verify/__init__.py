"""How a kernel earns trust: bounds from rounding analysis, and the means to hold kernels to them.

Where to begin: `contract` says what a contract is, `contracts/softmax.py` is a small one, and
`rounding` is the arithmetic in which every number carries how far a kernel may be from it.

- *bounds*: `units`, `machines`, `rounding`; for attention `attention_problem` and
  `attention_bound`; for a whole BERT `bert_bound`. `tightness`: how much of them kernels use.
- *cases and properties*: `domains` and `search`; `claims`, `not_numbers`, `disturbing`, `watching`.
- *what no bound catches*: `bias` (errors that lean to one side), `lockstep` (both sides trained),
  `derivatives` (what a gradient must be, however it was derived).
- `contracts/`: one for each operator. `report`, `processes`: judging all of them, and the report.
- `foreign/`: anyone's function judged by a contract; `peers/`: functions of other libraries.
- `strict/`: Triton's interpreter, as strict as the hardware; `compiling/`: kernels compiled for
  GPUs that need not be present; `pytest_plugin` brings the strict interpreter and the contracts to
  other projects.
- `mutants`, `mutation`, `trial`, `executed`: faults planted in a side, and whether they are caught;
  `faults/`: faults that have shipped elsewhere; `equivalents/`: mutants that no contract catches,
  and why.
"""
