/*
 * Accepts only scripts from http://example.com, sends them resource and
 * subprotocol, and closes; all others get 403. Only browsers send a reliable
 * origin: this keeps foreign pages out, not other programs.
 *
 *     cc -shared -fPIC origin_check_wsh.c -o origin_check_wsh.so
 *     ws://127.0.0.1:8080/origin_check
 */
#include <ws_handler.h>

static int do_extra_handshake(ws_conn conn, ws_handshake *hs)
{
    if (!ws_bytes_equal(ws_origin(conn), "http://example.com"))
        return ws_reject(hs, 403);
    return WS_OK;
}

static int transfer_data(ws_conn conn)
{
    ws_bytes resource = ws_resource(conn);
    ws_bytes protocol = ws_protocol(conn);
    char     text[512];

    snprintf(text, sizeof text, "origin_check_wsh is called for %.*s, %.*s",
             resource.size < 200 ? (int)resource.size : 200, resource.data,
             protocol.size < 200 ? (int)protocol.size : 200,
             protocol.data != NULL ? protocol.data : "");
    ws_send_text(conn, text);
    return WS_OK;
}

WS_HANDLER(.name = "origin_check", .do_extra_handshake = do_extra_handshake,
           .transfer_data = transfer_data);
