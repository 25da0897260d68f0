/*
 * The handler of the first release, ABI 1.0: it is never built again, and loads in
 * every later host. Sends every message back. The text "Goodbye" is sent back too
 * and then ends the connection; "Tail" calls what lies last in the host's table.
 *
 *     cc -O2 -s -shared -fPIC -I include ctests/frozen/abi_1_0_echo_wsh.c -o ctests/frozen/abi_1_0_echo_wsh.so.x86_64
 *     cc -I include ctests/layout.c -o layout && ./layout > ctests/frozen/abi_1_0_layout.x86_64
 */
#include <ws_handler.h>

static void tail(ws_conn conn)
{
    char    reply[128];
    int32_t subscribed = ws_subscribe(conn, "news", 0);
    int32_t published = ws_publish("news", WS_TEXT, "late", 4, WS_NOT_SELF);

    snprintf(reply, sizeof reply, "%d %d %u %u %d %s", (int)subscribed, (int)published, (unsigned)ws_missed(conn),
             (unsigned)ws_workers(), ws_remote_user(conn).data != NULL, ws_host_version());
    ws_send_text(conn, reply);
}

static void on_message(ws_conn conn, const ws_message *msg)
{
    ws_bytes text = {msg->data, msg->size};

    if (msg->type == WS_TEXT && ws_bytes_equal(text, "Tail"))
        tail(conn);
    else if (ws_send(conn, msg->type, msg->data, msg->size) == WS_E_FULL)
        ws_close(conn, WS_CLOSE_TRY_LATER, "you do not read");
    else if (msg->type == WS_TEXT && ws_bytes_equal(text, "Goodbye"))
        ws_close(conn, WS_CLOSE_NORMAL, NULL);
}

WS_HANDLER(.name = "echo", .protocols = "echo", .on_message = on_message);
