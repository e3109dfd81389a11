"""The Hub for tests answers as the real client expects."""

CLIENT = """
import sys
import huggingface_hub as hub
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError as EntryNotFoundError
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
ada, bob = sys.argv[1:]
api, stranger = HfApi(token=ada), HfApi(token=bob)

def fails(kind, status, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except kind as error:
        assert type(error) is kind and error.response.status_code == status, repr(error)
    else:
        raise AssertionError(f"{call} did not fail")

assert api.whoami()["name"] == "ada"
fails(HfHubHTTPError, 401, HfApi(token="hf_wrong").whoami)
for kind in ("model", "dataset"):
    name = api.create_repo(f"ada/{kind}", repo_type=kind, private=True).repo_id
    fails(HfHubHTTPError, 409, api.create_repo, name, repo_type=kind)
    fails(HfHubHTTPError, 403, stranger.create_repo, "ada/other", repo_type=kind)
    first = api.repo_info(name, repo_type=kind).sha
    small, large = b"small\\n", bytes(range(256)) * 8192
    operations = [hub.CommitOperationAdd("sub/small.txt", small), hub.CommitOperationAdd("sub/deep/large.bin", large)]
    commit = api.create_commit(name, operations, commit_message="both", repo_type=kind)
    info = api.repo_info(name, repo_type=kind, files_metadata=True)
    assert info.sha == commit.oid != first and info.private
    sizes = {file.rfilename: file.size for file in info.siblings}
    assert sizes["sub/small.txt"] == 6 and sizes["sub/deep/large.bin"] == len(large)
    assert sorted(file.path for file in api.list_repo_tree(name, repo_type=kind)) == [".gitattributes", "sub"]
    deep = {file.path: file for file in api.list_repo_tree(name, "sub", recursive=True, repo_type=kind)}
    assert sorted(deep) == ["sub/deep", "sub/deep/large.bin", "sub/small.txt"]
    assert deep["sub/deep/large.bin"].lfs.size == len(large) and deep["sub/small.txt"].lfs is None
    (found,) = api.get_paths_info(name, ["sub/small.txt", "absent"], repo_type=kind)
    assert found.blob_id == deep["sub/small.txt"].blob_id

    for path, content in (("sub/small.txt", small), ("sub/deep/large.bin", large)):
        file = hf_hub_download(name, path, token=ada, repo_type=kind)
        assert open(file, "rb").read() == content and commit.oid in file
    url = hub.hf_hub_url(name, "sub/deep/large.bin", repo_type=kind)
    session = hub.utils.get_session()
    part = session.get(url, headers={"Authorization": f"Bearer {ada}", "Range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == large[10:20]

    api.create_branch(name, branch="try/1", repo_type=kind)
    api.upload_file(path_or_fileobj=b"new", path_in_repo="new", repo_id=name, revision="try/1", repo_type=kind)
    api.create_tag(name, tag="v1", revision="try/1", repo_type=kind)
    pull = api.upload_file(path_or_fileobj=b"p", path_in_repo="p", repo_id=name, create_pr=True, repo_type=kind)
    assert pull.pr_url.endswith("/discussions/1")
    refs = api.list_repo_refs(name, include_pull_requests=True, repo_type=kind)
    assert [branch.name for branch in refs.branches] == ["main", "try/1"] and len(refs.pull_requests) == 1
    assert api.file_exists(name, "new", revision="v1", repo_type=kind)
    assert api.file_exists(name, "p", revision="refs/pr/1", repo_type=kind)
    assert not api.file_exists(name, "new", repo_type=kind) and not api.file_exists(name, "p", repo_type=kind)
    api.delete_folder("sub", name, repo_type=kind)
    assert api.list_repo_files(name, repo_type=kind) == [".gitattributes"]
    assert open(snapshot_download(name, revision=commit.oid, token=ada, repo_type=kind) + "/sub/small.txt").read()

    fails(RepositoryNotFoundError, 404, stranger.repo_info, name, repo_type=kind)
    fails(RepositoryNotFoundError, 401, HfApi(token=False).repo_info, name, repo_type=kind)
    fails(RevisionNotFoundError, 404, api.repo_info, name, revision="absent", repo_type=kind)
    fails(EntryNotFoundError, 404, hf_hub_download, name, "absent", token=ada, repo_type=kind)
    assert api.model_info(name, securityStatus=True).security_repo_status if kind == "model" else True
    api.delete_repo(name, repo_type=kind)
    fails(RepositoryNotFoundError, 404, api.repo_info, name, repo_type=kind)
print("all of it")
"""


def test_the_client_gets_what_it_expects(hub):
    from hub.server import ADA, BOB

    assert hub.python(CLIENT, ADA, BOB).strip().endswith("all of it")
