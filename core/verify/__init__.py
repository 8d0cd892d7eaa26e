"""How a kernel earns trust: bounds from rounding analysis, and the means to enforce them.

Where to begin: `contract` says what a contract is, `contracts/softmax.py` is a small one, and
`rounding` carries, beside every number of a reference, how far a kernel may be from it.

- *bounds*: `units`, `machines`, `rounding`; of attention `attention_problem` and `attention_bound`;
  of a whole BERT `bert_bound`. How much of them kernels use: `tightness`.
- *cases and properties*: `domains` and `search`; `claims`, `not_numbers`, `disturbing`, `watching`.
- *what no bound sees*: `bias` (errors that lean to one side), `lockstep` (both sides trained),
  `derivatives` (what a gradient must be, without knowing how it was derived).
- `contracts/`: one for each operator. `report`, `processes`: judging them all, and the table.
- `foreign/`: anyone's function held to a contract; `peers/`: functions of other libraries.
- `strict/`: Triton's interpreter, made as strict as the hardware; `compiling/`: kernels compiled
  for GPUs that are not there; `pytest_plugin` brings the strict interpreter to other projects.
- `mutants`, `mutation`, `trial`, `executed`: faults planted in a side, and whether they are seen;
  `faults/`: faults that have shipped elsewhere; `equivalents/`: mutants that no test can tell
  apart, and why.
"""
