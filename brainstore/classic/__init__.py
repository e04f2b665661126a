"""The zoo as plain files, in the layout of the original brain manager.

    registry.json                    {"models": {full name: metadata}, "latest": {name: full name}}
    ppo_swarm/v1/params.safetensors  one entry for each leaf of params, named by its path
    ppo_swarm/v1/opt_state.safetensors  the same for each other group
    ppo_swarm/v1/meta.json           the metadata, and what restores the trees exactly
    ppo_swarm/v1/lineage.json        station, parents, frozen experts: name, version, digest
    ppo_swarm/v1/quality_report.json  all reports on the version, if there are any
    ppo_swarm/v1/frozen_experts/     for each expert a JSON file that says where it is
    ppo_swarm/v1/files/              the files of the version
    ppo_swarm/latest -> v1           the highest version (`latest.txt` without symlinks)

Besides the fields of BrainMeta, `meta.json` has the manifest's `digest`, and by group
`structure` (see `brainstore.pytree.structure`), `carriers` (logical dtypes that safetensors
lacks, by leaf; see `brainstore.dtypes`) and `scalars` (leaves that were Python or NumPy
scalars). JSON has no NaN: a metric that is one is `{"$float": "nan"}`. The way back is
`brainstore.classic.importing`.
"""

from brainstore.classic.exporting import export
from brainstore.classic.importing import import_zoo
from brainstore.classic.tensorfile import read_tensors

__all__ = ["export", "import_zoo", "read_tensors"]
