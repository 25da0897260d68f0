//! Messages whose bytes the handler owns.

use crate::client::Raw;
use crate::daemon::{Dir, Server, until};

/// Answers each message with as many owned bytes as it says; their release sends "released".
const HANDLER: &str = r#"
    #include <stdlib.h>
    #include <string.h>
    #include <ws_handler.h>
    struct Parcel { ws_conn conn; char bytes[1]; };
    static void release(void *arg)
    {
        struct Parcel *parcel = arg;
        ws_send_text(parcel->conn, "released");
        free(parcel);
    }
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        size_t size = strtoul((const char *)msg->data, NULL, 10);
        struct Parcel *parcel = malloc(sizeof *parcel + size);
        parcel->conn = conn;
        memset(parcel->bytes, 'x', size);
        ws_send_owned(conn, WS_BINARY, parcel->bytes, size, 0, release, parcel);
    }
    WS_HANDLER(.name = "owned", .on_message = on_message);
"#;

#[test]
fn a_release_may_call_the_server() {
    let dir = Dir::new();
    dir.handler("owned", HANDLER);
    let mut server = Server::start(&dir, &["--workers", "1"]);
    let worker = server.worker();
    let mut raw = Raw::open(&server.address(), "/owned");
    for size in [0, 1, 20_000, 3_000_000] {
        raw.text(&size.to_string());
        let owned = raw.next().unwrap();
        assert_eq!(owned.payload.len(), size);
        assert_eq!(raw.next_text(), "released");
    }
    // One that is never sent: the peer disconnects while it is in the queue.
    raw.text("8000000");
    drop(raw);
    let mut raw = Raw::open(&server.address(), "/owned");
    raw.text("1");
    assert_eq!(raw.next().unwrap().payload.len(), 1);
    until("it is the same worker", || server.worker() == worker);
    drop(raw);
    server.stop();
}
