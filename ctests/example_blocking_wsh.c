#include <ws_handler.h>

static int do_extra_handshake(ws_conn conn, ws_handshake *hs)
{
    if (!ws_bytes_equal(ws_origin(conn), "https://example.com"))
        return ws_reject(hs, 403);
    return WS_OK;
}

static int transfer_data(ws_conn conn)
{
    ws_message msg;
    while (ws_receive(conn, &msg, WS_FOREVER) > 0)
        ws_send(conn, msg.type, msg.data, msg.size);
    return WS_OK;                      /* returning closes with 1000 */
}

WS_HANDLER(.name = "echo", .do_extra_handshake = do_extra_handshake,
           .transfer_data = transfer_data);
