/*
 * Closes on command: after the text "CODE REASON" the server closes with them.
 * A Close frame of the peer is answered with the same code and reason, or with
 * none if it has none. Event style.
 *
 *     cc -shared -fPIC close_wsh.c -o close_wsh.so
 *     ws://127.0.0.1:8080/close, then send "3001 so long"
 */
#include <stdlib.h>
#include <ws_handler.h>

static void on_message(ws_conn conn, const ws_message *msg)
{
    char         *end;
    unsigned long code = strtoul(msg->data, &end, 10);
    const char   *reason = *end == ' ' ? end + 1 : end;

    if (code > 4999 || ws_close(conn, (uint32_t)code, reason) == WS_E_INVALID)
        ws_close(conn, WS_CLOSE_INTERNAL_ERROR, "expected CODE REASON");
}

static int passive_closing_handshake(ws_conn conn)
{
    return ws_close(conn, ws_close_code(conn), ws_close_reason(conn).data);
}

WS_HANDLER(.name = "close", .on_message = on_message,
           .passive_closing_handshake = passive_closing_handshake);
