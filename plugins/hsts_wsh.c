/*
 * Adds Strict-Transport-Security to the reply, sends "Hello" and closes.
 *
 *     cc -shared -fPIC hsts_wsh.c -o hsts_wsh.so
 *     ws://127.0.0.1:8080/hsts
 */
#include <ws_handler.h>

static int do_extra_handshake(ws_conn conn, ws_handshake *hs)
{
    (void)conn;
    return ws_add_header(hs, "Strict-Transport-Security", "max-age=86400");
}

static int transfer_data(ws_conn conn)
{
    return ws_send_text(conn, "Hello");
}

WS_HANDLER(.name = "hsts", .do_extra_handshake = do_extra_handshake,
           .transfer_data = transfer_data);
