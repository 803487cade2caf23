"""What files of this folder share."""

import pytest


@pytest.fixture(scope="module")
def one_thread():
    """Small models gain nothing by more, and lose much where other programs run."""
    import torch  # here: the light tier reads this file too

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)
