/*
 * echo in the blocking style: the three functions of mod_pywebsocket. Each
 * connection has a thread, ws_receive() waits for the next message, and ws_send()
 * waits for a peer that reads slowly.
 *
 *     cc -shared -fPIC echo_blocking_wsh.c -o echo_blocking_wsh.so
 *     ws://127.0.0.1:8080/echo_blocking
 */
#include <ws_handler.h>

static int do_extra_handshake(ws_conn conn, ws_handshake *hs)
{
    (void)conn, (void)hs;
    return WS_OK; /* accepts all; see origin_check_wsh.c for a check */
}

static int transfer_data(ws_conn conn)
{
    ws_message msg;

    while (ws_receive(conn, &msg, WS_FOREVER) == WS_MESSAGE) {
        ws_bytes text = {msg.data, msg.size};
        ws_send(conn, msg.type, msg.data, msg.size);
        if (msg.type == WS_TEXT && ws_bytes_equal(text, "Goodbye"))
            break;
    }
    return WS_OK; /* returning closes with 1000 */
}

static int passive_closing_handshake(ws_conn conn)
{
    ws_log_conn(conn, WS_LOG_DEBUG, "the peer closes with %u", ws_close_code(conn));
    return WS_OK; /* answer with the same code */
}

WS_HANDLER(.name = "echo_blocking", .protocols = "echo",
           .do_extra_handshake = do_extra_handshake, .transfer_data = transfer_data,
           .passive_closing_handshake = passive_closing_handshake);
