/*
 * Sets or clears cookies in the reply to the opening handshake, selected by the
 * query, and closes.
 *
 *     cc -shared -fPIC cookie_wsh.c -o cookie_wsh.so
 *     ws://127.0.0.1:8080/cookie?set
 *     ws://127.0.0.1:8080/cookie?set_httponly
 *     ws://127.0.0.1:8080/cookie?clear
 */
#include <ws_handler.h>

static int do_extra_handshake(ws_conn conn, ws_handshake *hs)
{
    ws_bytes query = ws_query(conn);

    if (ws_bytes_equal(query, "set")) {
        ws_add_header(hs, "Set-Cookie", "foo=bar; Max-Age=86400");
    } else if (ws_bytes_equal(query, "set_httponly")) {
        ws_add_header(hs, "Set-Cookie", "httpOnlyFoo=bar; Max-Age=86400; httpOnly");
    } else if (ws_bytes_equal(query, "clear")) {
        ws_add_header(hs, "Set-Cookie", "foo=0; Max-Age=0");
        ws_add_header(hs, "Set-Cookie", "httpOnlyFoo=0; Max-Age=0");
    }
    return WS_OK;
}

static int transfer_data(ws_conn conn)
{
    (void)conn;
    return WS_OK;
}

WS_HANDLER(.name = "cookie", .do_extra_handshake = do_extra_handshake,
           .transfer_data = transfer_data);
