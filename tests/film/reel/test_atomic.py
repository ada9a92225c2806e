"""Files are the old one or the whole new one, whatever stops their writer."""

from __future__ import annotations

from pathlib import Path

import pytest
from longreel.film.reel.atomic import part_of, whole_file, write_text


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_file_is_the_old_one_or_the_whole_new_one(tmp_path: Path, unique: bool, error: type[BaseException]):
    path = tmp_path / "deep" / "file.json"
    write_text(path, "old")

    def broken_off() -> None:
        with whole_file(path, unique=unique) as part:
            part.write_text("half of")
            raise error

    with pytest.raises(error):
        broken_off()
    assert path.read_text() == "old"
    with whole_file(path, unique=unique) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path], "nothing is left beside it"


def test_names_of_one_stem_do_not_share_a_part():
    one, other = Path("a/lora.ckpt"), Path("a/lora.safetensors")
    assert part_of(one) != part_of(other)
    assert part_of(one, unique=True) != part_of(one, unique=True)
