"""Evaluation. Set before any library is imported: nothing asks a hub, and only our own progress bars are shown."""

import os

for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TQDM_DISABLE"):
    os.environ.setdefault(name, "1")
