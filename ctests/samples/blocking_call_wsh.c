/* Mistake: sleeps on the thread of all connections. */
#define _DEFAULT_SOURCE
#include <unistd.h>
#include <ws_handler.h>

static void on_message(ws_conn conn, const ws_message *msg)
{
    usleep(200 * 1000);
    ws_send(conn, msg->type, msg->data, msg->size);
}

WS_HANDLER(.name = "blocking_call", .on_message = on_message);
