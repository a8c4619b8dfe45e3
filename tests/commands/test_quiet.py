"""What of TensorFlow's own lines on stderr is dropped."""

from bn_graph.commands.quiet import write_without_notices


def test_notices_are_dropped_and_every_other_line_is_passed_on(capsys):
    cleanup = (
        "W0000 00:00:1.0 32 local_rendezvous.cc:412] Local rendezvous is aborting with status: ABORTED: Cleanup 12 []\n"
    )
    lost = "W0000 00:00:1.0 32 local_rendezvous.cc:412] Local rendezvous is aborting with status: UNAVAILABLE: gone\n"
    server = "I0000 00:00:1.0 46 grpc_server_lib.cc:464] Started server with target: grpc://127.0.0.1:39465\n"
    write_without_notices([server, "one line\n", cleanup, lost])
    assert capsys.readouterr().err == "one line\n" + lost
