import os

from raskid.io.scratch import remove_tree


def test_a_directory_goes_with_what_is_in_it(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").write_text("x")
    os.symlink(tmp_path / "a" / "file", tmp_path / "a" / "b" / "link")
    remove_tree(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_what_a_link_leads_to_stays(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (tmp_path / "gone").mkdir()
    os.symlink(tmp_path / "kept", tmp_path / "gone" / "link")
    os.symlink(tmp_path / "kept", tmp_path / "link")
    remove_tree(tmp_path / "gone")
    remove_tree(tmp_path / "link")
    assert not (tmp_path / "gone").exists()
    assert (tmp_path / "kept" / "file").exists()


def test_what_is_not_there_is_no_error(tmp_path):
    remove_tree(tmp_path / "none")
