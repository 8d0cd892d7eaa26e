"""How a kernel earns trust: bounds from rounding analysis, and means to hold kernels to them.

Where to begin: `contract` says what a contract is, `contracts/softmax.py` is a small one, and
`rounding` carries, beside every number of a reference, how far a kernel may be from it.

- *bounds*: `units`, `machines`, `rounding`; of attention `attention_problem` and `attention_bound`;
  of a whole BERT `bert_bound`. How much of them kernels use: `tightness`.
- *cases and properties*: `domains` and `search`; `claims`, `not_numbers`, `disturbing`, `watching`.
- *no bound sees these*: `bias` (errors that lean to one side), `lockstep` (both sides trained),
  `derivatives` (what a gradient must be, without knowing how it was derived).
- `contracts/`: one for each operator. `report`, `processes`: all of them judged, and shown.
- `foreign/`: anyone's function before a contract; `peers/`: those of other libraries.
- `strict/`: Triton's interpreter, as strict as the hardware; `compiling/`: kernels compiled for
  GPUs that are not there; `pytest_plugin` brings the first of these to other projects.
- `mutants`, `mutation`, `trial`, `executed`: faults planted in a side, and whether they are seen;
  `faults/`: such as have shipped elsewhere; `equivalents/`: those that nobody can see, and why.
"""
