/*
 * Sends every message back. The text "Goodbye" is sent back too and then ends
 * the connection. Event style.
 *
 *     cc -shared -fPIC echo_wsh.c -o echo_wsh.so
 *     ws://127.0.0.1:8080/echo
 */
#include <ws_handler.h>

static void on_message(ws_conn conn, const ws_message *msg)
{
    ws_bytes text = {msg->data, msg->size};

    if (ws_send(conn, msg->type, msg->data, msg->size) == WS_E_FULL)
        ws_close(conn, WS_CLOSE_TRY_LATER, "you do not read");
    else if (msg->type == WS_TEXT && ws_bytes_equal(text, "Goodbye"))
        ws_close(conn, WS_CLOSE_NORMAL, NULL);
}

WS_HANDLER(.name = "echo", .protocols = "echo", .on_message = on_message);
