"""A training run as an object: its network, its settings and its figures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qrdali.workflows.public import public

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import nn

    from qrdali.models import Preprocessing
    from qrdali.runs.adoption import Adoption
    from qrdali.runs.folder import BestModel
    from qrdali.runs.settings import Settings


class Run:
    """Reads a run folder, made by `train` or `adopt`, as it is at that moment.

    folder: its path. Raises InputError if it is not a run folder. Functions that take a folder take a Run
    too.

    Example:
        >>> run = qrdali.Run("runs/shared")
        >>> run.classes[0], run.preprocessing.input_size, run.settings.method
        ('orange-striped-disc', 32, 'shared')
        >>> model = run.model()
        >>> model(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 4])
        >>> run.metrics()["val_accuracy"].to_pylist()[0] <= 1
        True
    """

    @public
    def __init__(self, folder: str | os.PathLike[str]) -> None:
        from qrdali.runs import folder as run_folder

        self.folder = Path(folder)
        run_folder.require_run(self.folder)

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @public
    def model(self) -> nn.Module:
        """Returns the network of best/ on the CPU, in evaluation mode.

        It maps float32 [N, 3, S, S], made as `preprocessing` says, to logits float32 [N, classes]. Raises
        RunError if there is no best/ yet or it is damaged.
        """
        from qrdali.runs import folder as run_folder

        return run_folder.load_best(self.folder)[0].eval()

    @property
    @public
    def best(self) -> BestModel:
        """Returns what best/ records: model (a name), classes, preprocessing, epoch, val_accuracy, readable.

        val_accuracy is None of an adopted network; readable holds readable names of the classes, or is ().
        Raises as `model`.
        """
        from qrdali.runs import folder as run_folder

        return run_folder.describe_best(self.folder)

    @property
    def preprocessing(self) -> Preprocessing:
        """Returns input_size, fit, crop_share, crop_mode, interpolation, mean and std. Raises as `model`."""
        return self.best.preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        """Returns the class names, in the order of the network's outputs. Raises RunError as `model`."""
        return self.best.classes

    @property
    @public
    def settings(self) -> Settings:
        """Returns every setting, defaults included, as it was in effect.

        device, amp, threads and probe_batch_size are what they became where the run was trained, and
        automatic has the names of those that were left open. Of an adopted run, `method` is "adopted" and
        most have no meaning. Raises InputError for a damaged config.toml.
        """
        from qrdali.runs.settings import read_toml, validate_settings

        recorded = read_toml(self.folder / "config.toml")
        return validate_settings({key: value for key, value in recorded.items() if key != "adopted"})

    @property
    @public
    def adopted(self) -> Adoption | None:
        """Returns what the network was adopted from: source, weights, sha256 …; None if it was trained.

        Raises InputError or RunError for a damaged config.toml.
        """
        from qrdali.runs.adoption import read_adoption

        return read_adoption(self.folder)

    @public
    def metrics(self) -> pa.Table:
        """Returns metrics.jsonl as a table: a row per epoch after row 0, the start. What a row lacks is null.

        Objects such as `quality` are struct columns: `.flatten()` gives quality.color and so on,
        `.to_pandas()` a DataFrame where pandas is installed. Raises RunError if the file cannot be read.
        """
        import pyarrow as pa

        from qrdali.runs import folder as run_folder

        rows = list(run_folder.metrics_rows(self.folder))
        names = dict.fromkeys(name for row in rows for name in row)
        return pa.table({name: _column([row.get(name) for row in rows]) for name in names})

    @public
    def rows(self, name: str = "test") -> pa.Table:
        """Returns the predictions for a set that was evaluated with the weights of best/, in sample order.

        name: "val", "test", a name given to `qrdali.evaluate(sets=…)`, or that of a suite's rows. Columns:
        sample int64, path string, label and prediction int64 (−1: none of the classes), correct bool,
        confidence float32 (the probability of the prediction), rank int64 (of the true class, from 1) and
        true_probability float64; rows that version 0.1 wrote lack the last two. Raises InputError if the set
        has not been evaluated with these weights, RunError if the file is damaged.
        """
        import pyarrow as pa

        from qrdali.evaluation.prediction_rows import read_rows

        rows = read_rows(self.folder, name, self.best.epoch)
        assert rows.dtype.names is not None
        return pa.table({column: pa.array(rows[column]) for column in rows.dtype.names})


def _column(values: list[Any]) -> Any:
    """Returns a column of JSON values; where they have no common type, of their JSON text."""
    import json

    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else json.dumps(value) for value in values])
