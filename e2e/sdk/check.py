"""The published SDK, unchanged, against a gateway: check.py IMAGE [ENDPOINT]

Without an endpoint the gateway is found as a user's program finds it, by its registration, and spoken to with mTLS;
with one, in clear text. Prints a line for each thing that works and ends with `sdk: all of it works`.
"""

import sys

import grpc
from openshell import SandboxClient
from openshell._proto import datamodel_pb2 as datamodel
from openshell._proto import openshell_pb2 as pb

WORKSPACE = "default"


def scope():
    return datamodel.WorkspaceSelector(workspace=WORKSPACE)


def ok(what):
    print(f"ok  {what}", flush=True)


def expect(condition, what):
    if not condition:
        sys.exit(f"sdk: not so: {what}")
    ok(what)


def refused(code, act, what):
    try:
        act()
    except grpc.RpcError as error:
        expect(error.code() == code, f"{what}: {code.name}: {error.details()}")
        return error
    sys.exit(f"sdk: not refused: {what}")


def lives(client, image):
    spec = pb.SandboxSpec(template=pb.SandboxTemplate(image=image), environment={"GREETING": "hello"})
    made = client.create(workspace=WORKSPACE, spec=spec, name="sdk", labels={"made-by": "check"})
    expect(made.id and made.name == "sdk" and made.workspace == WORKSPACE, "create answers with id, name and workspace")
    ready = client.wait_ready("sdk", workspace=WORKSPACE, timeout_seconds=120)
    expect(ready.id == made.id and ready.labels["made-by"] == "check", "wait_ready")
    expect(ready.host_key_fingerprint.startswith("SHA256:"), "the fingerprint of its host key")

    result = client.exec("sdk", ["/bin/sh", "-c", "echo $GREETING; echo no >&2; exit 3"], workspace=WORKSPACE)
    expect((result.exit_code, result.stdout, result.stderr) == (3, "hello\n", "no\n"), "exec: code, output, errors")
    result = client.exec("sdk", ["/bin/cat"], workspace=WORKSPACE, stdin=b"from outside")
    expect(result.stdout == "from outside", "exec: standard input")
    result = client.exec("sdk", ["/bin/pwd"], workspace=WORKSPACE, workdir="/tmp")
    expect(result.stdout == "/tmp\n", "exec: working directory")
    factor = 6
    result = client.exec_python("sdk", lambda number: number * factor, args=[7], workspace=WORKSPACE)
    expect((result.exit_code, result.stdout) == (0, "42\n"), "exec_python: a function with what it closes over")
    chunks = list(client.exec_stream("sdk", ["/bin/sh", "-c", "echo 1; echo 2"], workspace=WORKSPACE))
    expect(chunks[-1].exit_code == 0 and len(chunks) >= 2, "exec_stream: chunks, then a result")
    result = client.exec("sdk", ["/bin/sleep", "60"], workspace=WORKSPACE, timeout_seconds=1)
    expect(result.exit_code == 124, "exec: a time limit is exit code 124")

    expect([box.name for box in client.list_all(workspace=WORKSPACE)] == ["sdk"], "list")
    request = pb.CreateSandboxRequest(name="again", spec=spec, request_id="the same", workspace_scope=scope())
    first, second = (client._stub.CreateSandbox(request).sandbox.metadata.id for _ in range(2))
    expect(first == second, "a create that comes again with its request id makes one sandbox")
    pages = [[box.name for box in page.items] for page in client.list(workspace=WORKSPACE, page_size=1)]
    expect(pages == [["again"], ["sdk"]], "list in pages of one")
    client.delete("again", workspace=WORKSPACE)
    client.wait_deleted("again", workspace=WORKSPACE)
    refused(grpc.StatusCode.ALREADY_EXISTS, lambda: client.create(workspace=WORKSPACE, spec=spec, name="sdk"), "a name taken")
    client.stop("sdk", workspace=WORKSPACE)
    client.wait_stopped("sdk", workspace=WORKSPACE, timeout_seconds=60)
    ok("stop, wait_stopped")
    refused(
        grpc.StatusCode.FAILED_PRECONDITION,
        lambda: client.exec("sdk", ["/bin/true"], workspace=WORKSPACE),
        "exec in a stopped sandbox",
    )
    client.start("sdk", workspace=WORKSPACE)
    client.wait_ready("sdk", workspace=WORKSPACE, timeout_seconds=120)
    ok("start, wait_ready")
    gone = client.delete("sdk", workspace=WORKSPACE)
    expect(gone.sandbox_id == made.id, "delete")
    client.wait_deleted("sdk", workspace=WORKSPACE)
    again = client.delete("sdk", workspace=WORKSPACE, allow_missing=True)
    expect(again.outcome.name == "ALREADY_ABSENT", "delete again, where nothing may be there")


def refusals(client, image):
    spec = pb.SandboxSpec(template=pb.SandboxTemplate(image="/no/such/image"))
    error = refused(grpc.StatusCode.NOT_FOUND, lambda: client.create(workspace=WORKSPACE, spec=spec, name="none"), "an unknown image")
    expect(error.error_info.reason == "UnknownImage", "the reason is in the error's details")
    refused(grpc.StatusCode.NOT_FOUND, lambda: client.get("none", workspace=WORKSPACE), "an unknown sandbox")
    refused(grpc.StatusCode.NOT_FOUND, lambda: client.get("none", workspace="other"), "an unknown workspace")
    bad = pb.SandboxSpec(template=pb.SandboxTemplate(image=image), environment={"OPENSHELL_X": "1"})
    error = refused(
        grpc.StatusCode.INVALID_ARGUMENT,
        lambda: client.create(workspace=WORKSPACE, spec=bad, name="bad"),
        "a reserved variable",
    )
    fields = [violation.field for violation in error.field_violations]
    expect(fields == ["spec.environment"], "the field that is wrong is in the error's details")
    expect(client.list_all(workspace=WORKSPACE) == [], "nothing was made")


def main():
    image, endpoint = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    client = SandboxClient(endpoint) if endpoint else SandboxClient.from_active_cluster()
    with client:
        expect(client.health().status == pb.SERVICE_STATUS_HEALTHY, "health")
        refusals(client, image)
        if not endpoint:
            lives(client, image)
    print("sdk: all of it works")


main()
