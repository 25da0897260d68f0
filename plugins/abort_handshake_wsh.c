/*
 * Drops the connection in the opening handshake, without any reply.
 *
 *     cc -shared -fPIC abort_handshake_wsh.c -o abort_handshake_wsh.so
 *     ws://127.0.0.1:8080/abort_handshake
 */
#include <ws_handler.h>

static int do_extra_handshake(ws_conn conn, ws_handshake *hs)
{
    (void)conn;
    return ws_abort_handshake(hs);
}

static int transfer_data(ws_conn conn)
{
    (void)conn;
    return WS_OK; /* never reached, but a handler must have a style */
}

WS_HANDLER(.name = "abort_handshake", .do_extra_handshake = do_extra_handshake,
           .transfer_data = transfer_data);
