"""Makes the golden store of the format that this version writes: ``python tests/golden/make.py``.

Run it once for each released format, and commit what it makes; a golden store is never made again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from store_cases import small_model, stream

import bayesmlp as bm
from bayesmlp.store.database import FORMAT_VERSION


def main() -> None:
    folder = Path(__file__).parent / f"format-{FORMAT_VERSION}"
    folder.mkdir()
    x, y = stream(30)
    with bm.open_store(folder / "store.db", actor="golden") as store:
        store.publish("small", small_model())
        wide = bm.BayesianMLP(bm.MLP((8,)), bm.Categorical(3), structure=bm.Full(), engine="numpy", standardize=False)
        wide.start_from_prior(4)
        store.publish("wide", wide)
        expected = {}
        for name in ("small", "wide"):
            with bm.OnlineUpdater(store, name, engine="numpy", snapshot_every=10) as updater:
                updater.observe_many(x[:20], y[:20], event_ids=[f"e{i}" for i in range(20)], source="alice")
                updater.observe_batch(x[20:25], y[20:25], event_id="batch", source="bob", time=5.0)
                updater.retract(["e3"])
                updater.rollback(15)
                updater.observe(x[25], y[25], event_id="last", weight=2.0)
            with bm.OnlineUpdater(store, name, engine="numpy") as updater:
                statuses = [[entry.kind, entry.status] for entry in updater.history()]
                means = updater.model.predict(x[25:]).probabilities.tolist()
                expected[name] = {"digest": updater.digest(), "history": statuses, "probabilities": means}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    (folder / "store.db.answers").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
