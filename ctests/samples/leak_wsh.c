/* Mistake: nobody frees what on_open has allocated. */
#include <stdlib.h>
#include <ws_handler.h>

static int32_t on_open(ws_conn conn)
{
    char *name = (char *)malloc(300);

    if (name == NULL)
        return WS_E_FAILED;
    memset(name, 'x', 300);
    return ws_set_user(conn, name);
}

static void on_message(ws_conn conn, const ws_message *msg)
{
    ws_send(conn, msg->type, msg->data, msg->size);
}

WS_HANDLER(.name = "leak", .on_open = on_open, .on_message = on_message);
